"""The service filesystem.Filesystem: directories, facts about files, and watching them."""
