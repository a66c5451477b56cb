// An access token at a key set, verified by npm `jose`, which oidc-provider brings along; for tests/it/exchange.rs. Not shipped.
//   node verify.mjs DIRECTORY-WITH-node_modules JWKS-URL ISSUER AUDIENCE <TOKEN
// Prints the header and the claims, or fails with what jose says.
import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const [directory, jwks, issuer, audience] = process.argv.slice(2);
const library = pathToFileURL(`${directory}/node_modules/jose/dist/webapi/index.js`);
const { createRemoteJWKSet, jwtVerify } = await import(library.href);
const token = readFileSync(0, 'utf8').trim();
const { payload, protectedHeader } = await jwtVerify(token, createRemoteJWKSet(new URL(jwks)), {
  issuer,
  audience,
  typ: 'at+jwt',
  algorithms: ['ES256'],
  maxTokenAge: 300,
  requiredClaims: ['sub', 'exp', 'jti', 'client_id', 'scope', 'grant_id'],
});
console.log(JSON.stringify({ header: protectedHeader, claims: payload }));
