// Loaded into the suite's process with `node --import`: adds a bearer token to every request it sends.
// The suite has no option for headers of one's own, and a proxy in between would hide what it probes the Host and
// Origin headers for.

import http from 'node:http';
import { createRequire } from 'node:module';
import { join } from 'node:path';

const undici = createRequire(join(process.env.CONFORMANCE_SUITE, 'package.json'))('undici');
const authorization = `Bearer ${process.env.CONFORMANCE_BEARER_TOKEN}`;

function withBearer(headers) {
  if (headers == null) return { authorization };
  if (Array.isArray(headers)) return [...headers, 'authorization', authorization];
  const entries = Symbol.iterator in headers ? [...headers] : Object.entries(headers);
  return Object.fromEntries([...entries, ['authorization', authorization]]);
}

// The built-in fetch and undici's request both go through the global dispatcher.
undici.setGlobalDispatcher(
  undici
    .getGlobalDispatcher()
    .compose((dispatch) => (options, handler) => dispatch({ ...options, headers: withBearer(options.headers) }, handler)),
);

// Some scenarios use node:http, because fetch does not let them send the header they want to try.
const request = http.request;
http.request = function (...args) {
  const outgoing = request.apply(this, args);
  outgoing.setHeader('authorization', authorization);
  return outgoing;
};
