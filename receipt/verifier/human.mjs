// How the human of a delegation was known: a passkey (WebAuthn level 3, section 7.2), an identity provider (OpenID
// Connect), or who held the data directory.
import { pow } from './noble/curves/abstract/modular.js';
import { ed25519 } from './noble/curves/ed25519.js';
import { p256 } from './noble/curves/nist.js';
import { bytesToNumberBE, bytesToNumberLE, equalBytes } from './noble/curves/utils.js';
import { sha256, sha512 } from './noble/hashes/sha2.js';
import { sha3_256 } from './noble/hashes/sha3.js';
import { bytesToHex, utf8ToBytes } from './noble/hashes/utils.js';
import { attempt, base64, decode, encode, join, must, read, utf8 } from './format.mjs';

/** edVerify is Ed25519 (RFC 8032) without the cofactor; prefix is what its variants sign in front. */
export function edVerify(sig, message, key, prefix = '') {
  const [R, s] = [sig.subarray(0, 32), bytesToNumberLE(sig.subarray(32))], { BASE, Fn, fromBytes } = ed25519.Point;
  const k = bytesToNumberLE(sha512(join([prefix, R, key, message]))) % Fn.ORDER;
  const expected = () => BASE.multiplyUnsafe(s).subtract(ed25519.Point.fromBytes(key, true).multiplyUnsafe(k)).toBytes();
  return s < Fn.ORDER && attempt(() => equalBytes(expected(), R));
}
function rsaVerify(sig, message, { n, e }) { // RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017, section 8.2.2)
  const [s, N, E] = [sig, n, e].map(bytesToNumberBE), size = Math.ceil(N.toString(16).length / 2);
  if (N < 1n << 2047n || N >= 1n << 4096n || N % 2n === 0n || e.length > 3 || E < 2n || E % 2n === 0n || sig.length !== size) return false;
  const block = `0001${'ff'.repeat(size - 54)}003031300d060960864801650304020105000420${bytesToHex(sha256(message))}`;
  return s < N && pow(s, E, N) === BigInt(`0x${block}`);
}
function passkeyVerify(sig, message, cose) {
  const [ec, ed, rsa] = ['es256', 'eddsa', 'rs256'].map((form) => attempt(() => read(form, cose)));
  if (ec) return attempt(() => p256.verify(sig, message, join([[4], ec.x, ec.y]), { lowS: false, format: 'der' }));
  return ed ? sig.length === 64 && edVerify(sig, message, ed.x) : rsa && rsaVerify(sig, message, rsa);
}
function clientData(data) { // WebAuthn level 3, section 5.8.1; no name may be there twice
  const source = utf8(data), value = attempt(() => JSON.parse(source)), names = [];
  must(value !== undefined && source.trimStart()[0] === '{' && equalBytes(utf8ToBytes(source), data), 'its client data is malformed');
  let depth = 0;
  for (const [token, colon] of source.matchAll(/"(?:[^"\\]|\\.)*"(?=\s*(:?))|[{}[\]]/g)) { // a name is text before a colon
    if (colon && depth === 1) names.push(JSON.parse(token).toWellFormed());
    depth += '{['.includes(token) - ']}'.includes(token);
  }
  must(new Set(names).size === names.length, 'its client data has a name twice');
  return value;
}

const sized = (limit, ...parts) => parts.every((x) => x.length > 0 && join([x]).length <= limit);
/** presence checks that the human of the first link of a chain was there for it. */
export function presence(l) {
  const { kind, data = new Uint8Array() } = l.proof ?? {};
  if (kind === 'bootstrap') return must(data.length === 0, 'has a bootstrap proof with data');
  must((kind === 'webauthn' || kind === 'oidc') && data.length <= 16 << 10, 'has no proof of its human that is known');
  const said = l.proof.said = read(kind, decode(data));
  const all = sha3_256(encode(new Map([...l.map].filter(([key]) => key !== 12n)))); // whatever the link says but the proof
  const challenge = base64(all).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
  return kind === 'oidc' ? authenticated(said, challenge, l) : asserted(said, challenge);
}
function authenticated(e, challenge, l) {
  must(e.issuer.length <= 512 && /^https?:\/\/[A-Za-z0-9.-]+(:[0-9]{1,5})?(\/[!"$->@-~]*)?$/.test(e.issuer), 'its issuer is no address');
  must(sized(255, e.subject) && sized(512, e.audience), 'its subject or audience has a wrong size');
  must(e.nonce === challenge && e.time >= l.notBefore - 120n && e.time < l.notAfter, 'its OIDC evidence is for something else');
}
function asserted(a, challenge) {
  must(sized(1023, a.credential) && sized(2048, a.key, a.data) && sized(4096, a.client) && sized(1024, a.signature), 'its size');
  const [, scheme, host] = /^(https?):\/\/([a-z0-9.-]+)(?::[0-9]{1,5})?$/.exec(a.origin) ?? [];
  must(host && a.origin.length <= 512 && a.party && `.${host}`.endsWith(`.${a.party}`), 'its origin is none of its party');
  must(scheme === 'https' || `.${host}`.endsWith('.localhost'), 'its origin is not secure');
  const c = clientData(a.client);
  must(c.type === 'webauthn.get' && c.challenge === challenge && c.origin === a.origin, 'its assertion is for something else');
  must(c.topOrigin === undefined && [undefined, false].includes(c.crossOrigin), 'it was made in another site\'s page');
  must(a.data.length >= 37 && equalBytes(a.data.subarray(0, 32), sha256(utf8ToBytes(a.party))), 'it is for another party');
  const flag = (bit) => (a.data[32] & bit) !== 0, [present, verified, eligible, backedUp, attested, extended] = [1, 4, 8, 16, 64, 128].map(flag);
  must(present && verified && (eligible || !backedUp) && !attested && extended === a.data.length > 37, 'its authenticator data');
  must(passkeyVerify(a.signature, join([a.data, sha256(a.client)]), decode(a.key)), 'its signature is wrong');
}
