// The script of script.py with the JavaScript SDK. Does what it is asked for by name, and prints an outcome a line, as JSON.

import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { mkdtemp, mkdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import {
  ALL_TRAFFIC,
  BuildError,
  CommandExitError,
  FilesystemEventType,
  Sandbox,
  SandboxNotFoundError,
  Secret,
  Template,
  Volume,
  waitForPort,
} from 'e2b'

const BOOT_ID = '/proc/sys/kernel/random/boot_id'
const FETCH_A_PACKAGE = 'python3 -m pip download --quiet --no-deps --no-cache-dir --dest /tmp six'
const ONCE = '--retries 0 --timeout 10'
const PATIENTLY = '--retries 3 --timeout 30'
const SERVE = 'python3 -m http.server 8000 --bind 127.0.0.1'

const newName = (kind) => `${kind}-${randomUUID().slice(0, 13)}`

async function until(isSo, withinMs = 60_000) {
  const deadline = Date.now() + withinMs
  while (!(await isSo())) {
    assert(Date.now() < deadline, 'it did not become so in time')
    await sleep(200)
  }
}

async function withSandbox(options, work) {
  const { template = undefined, ...rest } = options
  const sandbox = template === undefined ? await Sandbox.create(rest) : await Sandbox.create(template, rest)
  try {
    await work(sandbox)
  } finally {
    await sandbox.kill()
  }
}

const does = {
  async life() {
    const metadata = { mark: newName('mark'), 'a b': 'c&d' }
    await withSandbox({ metadata, envs: { COLOUR: 'blue' }, timeoutMs: 120_000 }, async (sandbox) => {
      assert.equal((await sandbox.commands.run('echo $COLOUR')).stdout, 'blue\n')
      const info = await sandbox.getInfo()
      assert.deepEqual([info.metadata, info.state], [metadata, 'running'])
      const query = { query: { metadata, state: ['running'] } }
      const listed = await Sandbox.list(query).nextItems()
      assert.deepEqual(listed.map((one) => one.sandboxId), [sandbox.sandboxId])
      const other = await Sandbox.connect(sandbox.sandboxId)
      assert(await sandbox.isRunning())
      assert.equal(await other.kill(), true)
      assert.equal(await sandbox.kill(), false)
      assert.equal(await sandbox.isRunning(), false)
      await assert.rejects(Sandbox.connect(sandbox.sandboxId), SandboxNotFoundError)
    })
  },

  async timeouts() {
    await withSandbox({ timeoutMs: 60_000 }, async (sandbox) => {
      const before = (await sandbox.getInfo()).endAt
      await sandbox.setTimeout(600_000)
      const longer = (await sandbox.getInfo()).endAt
      assert(longer > before)
      await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 30_000 })
      assert.deepEqual((await sandbox.getInfo()).endAt, longer)
      await sandbox.setTimeout(1000)
      await until(async () => !(await sandbox.isRunning()))
    })
  },

  async pages() {
    const metadata = { mark: newName('mark') }
    const made = []
    try {
      for (let n = 0; n < 3; n++) made.push(await Sandbox.create({ metadata }))
      const paginator = Sandbox.list({ query: { metadata }, limit: 2 })
      const found = []
      while (paginator.hasNext) found.push(...(await paginator.nextItems()))
      assert.deepEqual(
        found.map((one) => one.sandboxId),
        made.map((sandbox) => sandbox.sandboxId).reverse()
      )
    } finally {
      for (const sandbox of made) await sandbox.kill()
    }
  },

  async commands() {
    await withSandbox({}, async (sandbox) => {
      const result = await sandbox.commands.run('echo out; echo err >&2; pwd', { cwd: '/tmp', envs: { A: 'b' } })
      assert.deepEqual([result.stdout, result.stderr, result.exitCode], ['out\n/tmp\n', 'err\n', 0])
      assert.equal((await sandbox.commands.run('whoami', { user: 'root' })).stdout, 'root\n')
      await assert.rejects(
        sandbox.commands.run('echo sorry >&2; exit 3'),
        (error) => error instanceof CommandExitError && error.exitCode === 3 && error.stderr === 'sorry\n'
      )
      let said = ''
      await sandbox.commands.run('for n in 1 2 3; do echo $n; done', { onStdout: (text) => (said += text) })
      assert.equal(said, '1\n2\n3\n')

      const reader = await sandbox.commands.run('cat; echo done', { background: true, stdin: true })
      await sandbox.commands.sendStdin(reader.pid, 'hello\n')
      await sandbox.commands.closeStdin(reader.pid)
      assert.equal((await reader.wait()).stdout, 'hello\ndone\n')

      const numbers = [...Array(20).keys()]
      const runs = await Promise.all(numbers.map((n) => sandbox.commands.run(`sleep 0.2; echo ${n}`)))
      assert.deepEqual(runs.map((run) => run.stdout), numbers.map((n) => `${n}\n`))

      const sleeper = await sandbox.commands.run('sleep 1000', { background: true })
      assert((await sandbox.commands.list()).some((process) => process.pid === sleeper.pid))
      assert.equal(await sandbox.commands.kill(sleeper.pid), true)
      await assert.rejects(sleeper.wait(), CommandExitError)
      assert.equal(await sandbox.commands.kill(sleeper.pid), false)
    })
  },

  async files() {
    await withSandbox({}, async (sandbox) => {
      await sandbox.files.write('notes/first.txt', 'grüße')
      assert.equal(await sandbox.files.read('notes/first.txt'), 'grüße')
      await sandbox.files.write([
        { path: '/home/user/notes/two', data: new Uint8Array([0, 1]).buffer },
        { path: '/tmp/3', data: '3' },
      ])
      assert.deepEqual(await sandbox.files.read('notes/two', { format: 'bytes' }), new Uint8Array([0, 1]))
      const content = new Uint8Array(2 ** 21).map((_, n) => n % 256)
      await sandbox.files.write('big', content.buffer)
      const stream = await sandbox.files.read('big', { format: 'stream' })
      assert.deepEqual(new Uint8Array(await new Response(stream).arrayBuffer()), content)
      const info = await sandbox.files.getInfo('notes/first.txt')
      assert.deepEqual([info.path, info.size, info.owner], ['/home/user/notes/first.txt', 7, 'user'])
      const entries = await sandbox.files.list('notes')
      assert.deepEqual(entries.map((entry) => [entry.name, entry.type]), [['first.txt', 'file'], ['two', 'file']])
      assert.equal(await sandbox.files.makeDir('empty'), true)
      assert.equal(await sandbox.files.makeDir('empty'), false)
      assert.equal((await sandbox.files.rename('notes/two', 'empty/moved')).path, '/home/user/empty/moved')
      await sandbox.files.remove('notes')
      assert.equal(await sandbox.files.exists('notes'), false)
    })
  },

  async terminal() {
    await withSandbox({}, async (sandbox) => {
      let seen = ''
      const decoder = new TextDecoder()
      const onData = (data) => (seen += decoder.decode(data, { stream: true }))
      const shell = await sandbox.pty.create({ rows: 24, cols: 80, onData })
      await sandbox.pty.resize(shell.pid, { rows: 30, cols: 100 })
      await sandbox.pty.sendInput(shell.pid, new TextEncoder().encode('stty size; tty; exit\n'))
      await shell.wait()
      assert(seen.includes('30 100') && seen.includes('/dev/pts/'), seen)
    })
  },

  async watch() {
    await withSandbox({}, async (sandbox) => {
      await sandbox.files.makeDir('watched/below')
      const events = []
      const watcher = await sandbox.files.watchDir('watched', (event) => events.push(event), { recursive: true })
      await sandbox.files.write('watched/below/new.txt', 'new')
      for (const type of [FilesystemEventType.CREATE, FilesystemEventType.WRITE]) {
        await until(() => events.some((event) => event.name === 'below/new.txt' && event.type === type))
      }
      await watcher.stop()
    })
  },

  async git() {
    await withSandbox({}, async (sandbox) => {
      await sandbox.git.init('project', { initialBranch: 'main' })
      await sandbox.git.configureUser('Ann', 'ann@example.com')
      await sandbox.files.write('project/readme', 'hello')
      assert.deepEqual((await sandbox.git.status('project')).fileStatus.map((file) => file.name), ['readme'])
      await sandbox.git.add('project')
      await sandbox.git.commit('project', 'First')
      await sandbox.git.createBranch('project', 'next')
      const { branches, currentBranch } = await sandbox.git.branches('project')
      assert.deepEqual([branches.sort(), currentBranch], [['main', 'next'], 'next'])
      await sandbox.git.clone('/home/user/project', { path: 'copy' })
      assert.equal(await sandbox.files.read('copy/readme'), 'hello')
    })
  },

  async pause() {
    await withSandbox({}, async (sandbox) => {
      const process = await sandbox.commands.run('sleep 1000', { background: true })
      assert.equal(await sandbox.pause(), true)
      assert.equal((await sandbox.getInfo()).state, 'paused')
      assert.equal(await sandbox.pause(), false)
      const again = await Sandbox.connect(sandbox.sandboxId)
      await again.commands.run(`kill -0 ${process.pid}`)
    })
  },

  async pause_files() {
    await withSandbox({}, async (sandbox) => {
      await sandbox.files.write('kept', 'kept')
      await sandbox.commands.run('exec -a forgotten sleep 1000', { background: true })
      const bootId = await sandbox.files.read(BOOT_ID)
      await sandbox.pause({ keepMemory: false })
      const again = await Sandbox.connect(sandbox.sandboxId)
      assert.equal(await again.files.read('kept'), 'kept')
      assert.notEqual(await again.files.read(BOOT_ID), bootId)
      await assert.rejects(again.commands.run('pgrep -f ^forgotten'), CommandExitError)
    })
  },

  async auto_pause() {
    const lifecycle = { onTimeout: 'pause', autoResume: true }
    await withSandbox({ timeoutMs: 2000, lifecycle }, async (sandbox) => {
      await sandbox.files.write('kept', 'kept')
      await until(async () => (await sandbox.getInfo()).state === 'paused')
      // Again and again: what traffic has woken pauses at its next time-out.
      await until(
        async () => (await sandbox.files.read('kept')) === 'kept' && (await sandbox.getInfo()).state === 'running',
      )
    })
  },

  async snapshots() {
    await withSandbox({}, async (sandbox) => {
      await sandbox.files.write('kept', 'before')
      const name = newName('snapshot')
      const snapshot = await sandbox.createSnapshot({ name })
      await sandbox.files.write('kept', 'after')
      const listed = await Sandbox.listSnapshots({ sandboxId: sandbox.sandboxId }).nextItems()
      assert(listed.some((one) => one.snapshotId === snapshot.snapshotId))
      for (const template of [snapshot.snapshotId, name]) {
        await withSandbox({ template }, async (copy) => assert.equal(await copy.files.read('kept'), 'before'))
      }
      assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), true)
      assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), false)
    })
  },

  async fork() {
    await withSandbox({ envs: { A: 'b' }, metadata: { kind: 'source' } }, async (sandbox) => {
      await sandbox.files.write('kept', 'source')
      const made = await sandbox.fork({ count: 2 })
      const copies = made.filter((copy) => copy instanceof Sandbox)
      try {
        assert.equal(copies.length, 2, String(made))
        await copies[0].files.write('kept', 'first')
        assert.equal(await copies[1].files.read('kept'), 'source')
        assert.equal((await copies[1].commands.run('echo $A')).stdout, 'b\n')
        assert.deepEqual((await copies[1].getInfo()).metadata, { kind: 'source' })
      } finally {
        for (const copy of copies) await copy.kill()
      }
    })
  },

  async metrics() {
    await withSandbox({}, async (sandbox) => {
      await until(async () => (await sandbox.getMetrics()).length > 0)
      const sample = (await sandbox.getMetrics()).at(-1)
      assert(sample.cpuCount >= 1)
      assert(0 < sample.memUsed && sample.memUsed <= sample.memTotal)
      assert(0 < sample.diskUsed && sample.diskUsed <= sample.diskTotal)
    })
  },

  async signed_urls() {
    await withSandbox({}, async (sandbox) => {
      await sandbox.files.write('report.txt', 'report')
      const url = await sandbox.downloadUrl('report.txt', { useSignatureExpiration: 60 })
      assert.equal(await (await fetch(url)).text(), 'report')
      assert.equal((await fetch(url.replace('report.txt', 'other.txt'))).status, 401)
      const form = new FormData()
      form.append('file', new Blob(['sent']), 'sent.txt')
      const upload = await sandbox.uploadUrl('/home/user/sent.txt', { useSignatureExpiration: 60 })
      assert((await fetch(upload, { method: 'POST', body: form })).ok)
      assert.equal(await sandbox.files.read('sent.txt'), 'sent')
      const expired = await fetch(await sandbox.downloadUrl('report.txt', { useSignatureExpiration: -1 }))
      assert.deepEqual(await expired.json(), { code: 401, message: 'signature is already expired' })
    })
  },

  async network() {
    await withSandbox({ network: { denyOut: [ALL_TRAFFIC] } }, async (sandbox) => {
      await assert.rejects(sandbox.commands.run(`${FETCH_A_PACKAGE} ${ONCE}`), CommandExitError)
      await sandbox.updateNetwork({})
      await sandbox.commands.run(`${FETCH_A_PACKAGE} ${PATIENTLY}`, { timeoutMs: 240_000 })
      await sandbox.updateNetwork({ allowOut: ['nothing.example.com'], denyOut: [ALL_TRAFFIC] })
      await assert.rejects(sandbox.commands.run(`${FETCH_A_PACKAGE} ${ONCE}`), CommandExitError)
    })
    await withSandbox({ allowInternetAccess: false }, async (sandbox) => {
      await assert.rejects(sandbox.commands.run(`${FETCH_A_PACKAGE} ${ONCE}`), CommandExitError)
    })
  },

  async template() {
    const name = newName('web')
    const folder = await mkdtemp(path.join(tmpdir(), 'site-'))
    const said = []
    try {
      await mkdir(path.join(folder, 'site'))
      await writeFile(path.join(folder, 'site', 'index.html'), 'hello from the template')
      const definition = Template({ fileContextPath: folder })
        .fromBaseImage()
        .copy('site', '/srv/site')
        .setEnvs({ GREETING: 'good day' })
        .runCmd('echo built > ~/built')
        .setWorkdir('/srv/site')
        .setStartCmd('python3 -m http.server 8000', waitForPort(8000))
      await Template.build(definition, name, { onBuildLogs: (entry) => said.push(entry.message) })
    } finally {
      await rm(folder, { recursive: true })
    }
    assert(said.length > 0)
    await withSandbox({ template: name }, async (sandbox) => {
      const result = await sandbox.commands.run('echo $GREETING; pwd; cat ~/built')
      assert.equal(result.stdout, 'good day\n/srv/site\nbuilt\n')
      const page = await sandbox.commands.run(
        'curl --silent --retry 20 --retry-connrefused --retry-delay 1 localhost:8000'
      )
      assert.equal(page.stdout, 'hello from the template')
    })
    const broken = Template().fromBaseImage().runCmd('echo on purpose; exit 7')
    await assert.rejects(
      Template.build(broken, name),
      (error) => error instanceof BuildError && error.message.includes('exit status 7')
    )
  },

  async template_tags() {
    const name = newName('tagged')
    assert.equal(await Template.exists(name), false)
    const { buildId } = await Template.build(Template().fromBaseImage(), `${name}:v1`)
    assert.equal(await Template.exists(name), true)
    await Template.assignTags(`${name}:v1`, ['prod'])
    const tags = await Template.getTags(name)
    assert.deepEqual(tags.map((tag) => [tag.tag, tag.buildId]).sort(), [['prod', buildId], ['v1', buildId]])
    await withSandbox({ template: `${name}:prod` }, () => Template.removeTags(name, 'prod'))
    await assert.rejects(Sandbox.create(`${name}:prod`))
  },

  async volumes() {
    const volume = await Volume.create(newName('data'))
    const volumeMounts = { '/data': volume }
    try {
      await volume.writeFile('input.txt', 'from outside')
      await withSandbox({ volumeMounts }, async (sandbox) => {
        assert.equal(await sandbox.files.read('/data/input.txt'), 'from outside')
        await sandbox.files.write('/data/output.txt', 'from inside')
      })
      await withSandbox({ volumeMounts }, async (sandbox) => {
        assert.equal(await sandbox.files.read('/data/output.txt'), 'from inside')
      })
      assert.equal(await volume.readFile('output.txt'), 'from inside')
    } finally {
      assert.equal(await Volume.destroy(volume.volumeId), true)
    }
  },

  async secrets() {
    const name = newName('secret')
    const first = await Secret.create(name, 'value', { metadata: { for: 'a test' } })
    try {
      assert.equal(await Secret.exists(name), true)
      assert((await Secret.update(name, 'another')).version > first.version)
      const listed = await Secret.list().nextItems()
      assert(listed.some((secret) => secret.secretId === first.secretId))
    } finally {
      assert.equal(await Secret.destroy(name), true)
    }
    assert.equal(await Secret.exists(name), false)
  },

  async hosts() {
    await withSandbox({}, async (sandbox) => {
      await sandbox.commands.run(SERVE, { background: true })
      await until(async () => (await fetch(`https://${sandbox.getHost(8000)}`)).status === 200)
      const closed = await fetch(`https://${sandbox.getHost(8001)}`)
      assert.equal(closed.status, 502)
      assert((await closed.json()).message.includes('port is not open'))
    })
  },

  async private_hosts() {
    await withSandbox({ network: { allowPublicTraffic: false } }, async (sandbox) => {
      await sandbox.commands.run(SERVE, { background: true })
      const url = `https://${sandbox.getHost(8000)}`
      assert.equal((await fetch(url)).status, 403)
      const headers = { 'e2b-traffic-access-token': sandbox.trafficAccessToken }
      await until(async () => (await fetch(url, { headers })).status === 200)
    })
  },

  async mcp() {
    await withSandbox({ mcp: { time: {} } }, async (sandbox) => {
      const token = await sandbox.getMcpToken()
      assert((await askForTheTime(sandbox.getMcpUrl(), token)).includes('UTC'))
      const again = await Sandbox.connect(sandbox.sandboxId)
      assert.equal(await again.getMcpToken(), token)
      assert((await askForTheTime(again.getMcpUrl(), token)).includes('UTC'))
    })
    await assert.rejects(Sandbox.create({ mcp: { 'no-such-server': {} } }), /Failed to start MCP gateway/)
  },

  async mcp_template() {
    const name = newName('servers')
    await Template.build(Template().fromTemplate('mcp-gateway').addMcpServer(['time']), name)
    await withSandbox({ template: name, mcp: { time: {} } }, async (sandbox) => {
      assert((await askForTheTime(sandbox.getMcpUrl(), await sandbox.getMcpToken())).includes('UTC'))
    })
  },

  async fork_memory() {
    await withSandbox({}, async (sandbox) => {
      await sandbox.commands.run('exec -a remembered sleep 1000', { background: true })
      const [copy] = await sandbox.fork()
      try {
        await copy.commands.run('pgrep -f ^remembered')
      } finally {
        await copy.kill()
      }
    })
  },

  async header_rules() {
    const rules = { 'api.example.com': [{ transform: { headers: { 'X-Added': '1' } } }] }
    await withSandbox({ network: { allowOut: ['api.example.com'], denyOut: [ALL_TRAFFIC], rules } }, () => {})
  },

  async egress_proxy() {
    await withSandbox({ network: { egressProxy: { address: 'proxy.example.com:1080' } } }, () => {})
  },

  async https_ports() {
    await withSandbox({ network: { httpsPorts: [8443] } }, () => {})
  },

  async identity() {
    const iam = { tokens: { aws: { audience: 'sts.example.com', tokenType: 'JWT-SVID' } } }
    await withSandbox({ iam }, () => {})
  },
}

async function askForTheTime(url, token) {
  const client = new Client({ name: 'script', version: '1' })
  const requestInit = { headers: { Authorization: `Bearer ${token}` } }
  await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit }))
  try {
    const result = await client.callTool({ name: 'get_current_time', arguments: { timezone: 'UTC' } })
    return JSON.stringify(result.content)
  } finally {
    await client.close()
  }
}

for (const feature of process.argv.slice(2)) {
  let failure = ''
  try {
    await does[feature]()
  } catch (error) {
    failure = error?.stack ?? String(error)
  }
  console.log(JSON.stringify({ feature, failure }))
}
process.exit()
