// The real oidc-provider over https on a free port of loopback, for tests/it/oidc_provider.rs. Not shipped.
//   node provider.mjs DIRECTORY-WITH-node_modules CERT KEY AUDIENCE
// Prints {"issuer": ...} once it listens. A line on standard input has it start over with new signing keys.
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

const [directory, cert, key, audience] = process.argv.slice(2);
const library = pathToFileURL(`${directory}/node_modules/oidc-provider/lib/index.js`);
const { default: Provider } = await import(library.href);

function signingKeys() {
  const named = (alg, type, options) => {
    const jwk = generateKeyPairSync(type, options).privateKey.export({ format: 'jwk' });
    return { ...jwk, alg, use: 'sig', kid: `${alg}-${randomBytes(6).toString('hex')}` };
  };
  return [named('RS256', 'rsa', { modulusLength: 2048 }), named('ES256', 'ec', { namedCurve: 'P-256' })];
}

function provider(issuer) {
  const resource = {
    audience,
    scope: 'api',
    accessTokenFormat: 'jwt',
    accessTokenTTL: 300,
    jwt: { sign: { alg: 'ES256' } },
  };
  return new Provider(issuer, {
    clients: [
      {
        client_id: 'pipeline',
        client_secret: 'a secret of the test',
        grant_types: ['client_credentials'],
        redirect_uris: [],
        response_types: [],
        token_endpoint_auth_method: 'client_secret_post',
      },
    ],
    cookies: { keys: [randomBytes(16).toString('hex')] },
    jwks: { keys: signingKeys() },
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => audience,
        getResourceServerInfo: () => resource,
        useGrantedResource: () => true,
      },
    },
  });
}

let answer = (_request, response) => response.writeHead(503).end();
const server = createServer({ cert: readFileSync(cert), key: readFileSync(key) }, (q, s) => answer(q, s));
server.listen(0, '127.0.0.1', () => {
  const issuer = `https://127.0.0.1:${server.address().port}`;
  const renew = () => {
    answer = provider(issuer).callback();
    console.log(JSON.stringify({ issuer }));
  };
  renew();
  const lines = createInterface({ input: process.stdin });
  lines.on('line', renew);
  // Whoever started it has gone.
  lines.on('close', () => process.exit(0));
});
