// How the human of a delegation was known: a passkey (WebAuthn level 3, section 7.2), an identity provider (OpenID
// Connect), or who held the data directory.
import { ed25519 } from './noble/curves/ed25519.js';
import { p256 } from './noble/curves/nist.js';
import { sha256, sha512 } from './noble/hashes/sha2.js';
import { sha3_256 } from './noble/hashes/sha3.js';
import { ascii, base64url, bytes, decode, digest, hex, int, join, must, number, same, struct, text, utf8 } from './format.mjs';

/** edVerify is plain Ed25519 (RFC 8032), without the cofactor; prefix is what its variants sign in front. */
const little = (b) => number(Uint8Array.from(b).reverse());
export function edVerify(sig, message, key, prefix = []) { // RFC 8032, without the cofactor
  const s = little(sig.subarray(32)), order = ed25519.Point.Fn.ORDER;
  if (s >= order) return false;
  try {
    const k = little(sha512(join(prefix, sig.subarray(0, 32), key, message))) % order, A = ed25519.Point.fromBytes(key, true);
    return same(ed25519.Point.BASE.multiplyUnsafe(s).subtract(A.multiplyUnsafe(k)).toBytes(), sig.subarray(0, 32));
  } catch { return false; }
}

const bounded = (x, limit) => x.length > 0 && (typeof x === 'string' ? ascii(x) : x).length <= limit;
const assertion = struct([1, 'party', text], [2, 'origin', text], [3, 'credential', bytes], [4, 'key', bytes], [5, 'data', bytes], [6, 'client', bytes], [7, 'signature', bytes]);
const evidence = struct([1, 'issuer', text], [2, 'subject', text], [3, 'audience', text], [4, 'token hash', digest], [5, 'time', int], [6, 'nonce', text]);
const [ec, okp, rsa] = [[[-1, 'n', int], [-2, 'x', bytes], [-3, 'y', bytes]], [[-1, 'n', int], [-2, 'x', bytes]], [[-1, 'n', bytes], [-2, 'e', bytes]]]
  .map((parameters) => struct([1, 'type', int], [3, 'algorithm', int], ...parameters));
function passkey(key) { // a COSE key (RFC 9052) as what verifies a signature
  const cose = decode(key), is = (k, ...of) => must([k.type, k.algorithm, k.n].every((x, i) => of[i] === undefined || x === of[i]), 'its key is of an unknown form');
  if (cose.pairs?.size === 5) {
    const k = ec(cose), point = join([4], k.x, k.y);
    is(k, 2n, -7n, 1n);
    try { must(k.x.length === 32 && p256.Point.fromBytes(point), ''); } catch { must(false, 'its key is no point of its curve'); }
    return (message, sig) => { try { return p256.verify(sig, sha256(message), point, { prehash: false, lowS: false, format: 'der' }); } catch { return false; } };
  }
  if (typeof cose.pairs?.get(-1n)?.value === 'bigint') {
    const k = okp(cose);
    is(k, 1n, -8n, 6n), must(k.x.length === 32, 'its key is of an unknown form');
    return (message, sig) => sig.length === 64 && edVerify(sig, message, k.x);
  }
  const k = rsa(cose), n = number(k.n), e = number(k.e), bits = n.toString(2).length, size = Math.ceil(bits / 8);
  is(k, 3n, -257n), must(bits >= 2048 && bits <= 4096 && k.e.length <= 3, 'its key is of an unknown form');
  return (message, sig) => { // RFC 8017, section 8.2.2
    const block = '0001' + 'ff'.repeat(size - 54) + '00' + '3031300d060960864801650304020105000420' + hex(sha256(message));
    let [s, power, out] = [number(sig), e, 1n];
    if (sig.length !== size || s >= n || n % 2n === 0n || e < 2n || e % 2n === 0n) return false;
    for (; power; power >>= 1n, s = s * s % n) if (power & 1n) out = out * s % n;
    return out.toString(16).padStart(2 * size, '0') === block;
  };
}
function clientData(data) { // WebAuthn level 3, section 5.8.1; no name may be there twice
  try {
    const source = utf8.decode(data), value = JSON.parse(source), names = [];
    let depth = 0, last;
    for (const [token] of source.matchAll(/"(?:[^"\\]|\\.)*"|[{}[\]:]/g)) {
      depth += '{['.includes(token) - ']}'.includes(token);
      if (token === ':' && depth === 1) names.push(JSON.parse(last).replace(/\p{Cs}/gu, '\ufffd'));
      last = token;
    }
    must(source.trimStart()[0] === '{' && new Set(names).size === names.length);
    return value;
  } catch { return must(false, 'its client data is malformed'); }
}
/** presence checks that the human of the first link was there for it. */
export function presence(l) {
  const { kind, data = new Uint8Array() } = l.proof ?? { kind: '' };
  if (kind === 'bootstrap') return must(data.length === 0, 'has a bootstrap proof with data');
  must(kind === 'webauthn' || kind === 'oidc', kind ? 'has a proof of an unknown kind' : 'has no proof of its human');
  must(data.length <= 16 << 10, 'has a malformed proof');
  const said = [...l.pairs].filter(([key]) => key !== 12n).map(([, pair]) => pair.raw), challenge = base64url(sha3_256(join([0xa0 + said.length], ...said)));
  if (kind === 'oidc') {
    const e = evidence(decode(data));
    must(e.issuer.length <= 512 && /^https?:\/\/[A-Za-z0-9.-]+(:[0-9]{1,5})?(\/[!"$->@-~]*)?$/.test(e.issuer), 'has OIDC evidence whose issuer is no address');
    must(bounded(e.subject, 255) && bounded(e.audience, 512), 'has OIDC evidence whose subject or audience has a wrong size');
    return must(e.nonce === challenge && e.time >= l.notBefore - 120n && e.time < l.notAfter, 'has OIDC evidence for something else');
  }
  const p = assertion(decode(data)), [, scheme, host] = /^(https?):\/\/([a-z0-9.-]+)(?::[0-9]{1,5})?$/.exec(p.origin) ?? [], flags = p.data[32], of = 'has a passkey assertion that does not hold: ';
  must(bounded(p.credential, 1023) && bounded(p.key, 2 << 10) && bounded(p.client, 4 << 10) && bounded(p.signature, 1 << 10) && p.data.length >= 37 && p.data.length <= 2 << 10, of + 'its size');
  must(p.origin.length <= 512 && host && p.party && (host === p.party || host.endsWith('.' + p.party)) && (scheme === 'https' || host === 'localhost' || host.endsWith('.localhost')), of + 'its origin');
  const c = clientData(p.client);
  must(c.type === 'webauthn.get' && c.challenge === challenge && c.origin === p.origin && !Object.hasOwn(c, 'topOrigin') && (!Object.hasOwn(c, 'crossOrigin') || c.crossOrigin === false), of + 'it is for something else');
  must(same(p.data.subarray(0, 32), sha256(ascii(p.party))) && (flags & 5) === 5 && (flags & 0x18) !== 0x10 && !(flags & 0x40) && !!(flags & 0x80) === p.data.length > 37, of + 'its authenticator data');
  must(passkey(p.key)(join(p.data, sha256(p.client)), p.signature), of + 'its signature is wrong');
}

/** known says how the human was known, for people. Parts of it are words of others. */
export function known({ kind, data }) {
  if (kind === 'webauthn') return `by passkey (${assertion(decode(data)).party})`;
  if (kind !== 'oidc') return 'by bootstrap: whoever held the data directory';
  const e = evidence(decode(data));
  return `by OIDC ${e.issuer} subject ${e.subject}`;
}
