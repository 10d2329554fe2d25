// The second verifier of bundles, written from the format and not from the first: it shares no code and no table with
// the Go one (package receipt), and a test holds the two to one verdict on every bundle. It runs in browsers and in Node:
//
//   node verify.mjs FILE [--root FINGERPRINT]
//
// Exit codes: 0 verified under the root, 1 refused, 3 consistent under a root that nobody vouched for.
import { ml_dsa65 } from './noble/post-quantum/ml-dsa.js';
import { ed25519 } from './noble/curves/ed25519.js';
import { p256 } from './noble/curves/nist.js';
import { sha256, sha512 } from './noble/hashes/sha2.js';
import { sha3_256 } from './noble/hashes/sha3.js';

class Wrong extends Error {} // what does not hold, without its part yet
const must = (ok, why) => { if (!ok) throw new Wrong(why); };
/** Refused names the part of a bundle that does not hold, and why. */
export class Refused extends Error {}
const within = (part, f) => {
  try { return f(); } catch (e) { throw e instanceof Wrong ? new Refused(`${part}: ${e.message}`) : e; }
};

// ---- bytes ----
const ascii = (s) => new TextEncoder().encode(s), utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
const hex = (b) => Array.from(b, (x) => x.toString(16).padStart(2, '0')).join(''), number = (b) => BigInt('0x0' + hex(b));
const compare = (a, b) => { const i = a.findIndex((x, j) => x !== b[j]); return i < 0 ? a.length - b.length : a[i] - (b[i] ?? -1); };
const same = (a, b) => compare(a, b) === 0;
const join = (...parts) => Uint8Array.from(parts.reduce((all, p) => { for (const x of p) all.push(x); return all; }, []));
const base64 = (b) => btoa(Array.from(b, (x) => String.fromCharCode(x)).join(''));
const base64url = (b) => base64(b).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
function unbase64(s) { // in its one form
  let b = '';
  try { b = Uint8Array.from(atob(s), (c) => c.charCodeAt(0)); } catch { /* it is compared */ }
  must(base64(b) === s, 'it is malformed');
  return b;
}

// ---- deterministic CBOR (RFC 8949, section 4.2.1): numbers, bytes, text, lists, maps, booleans ----
export function decode(data) {
  let at = 0;
  const check = (ok) => must(ok, 'it is no canonical encoding');
  const take = (n) => { check(n <= BigInt(data.length - at)); at += Number(n); return data.subarray(at - Number(n), at); };
  function item(depth) {
    const start = at, first = take(1n)[0], info = first & 31, major = first >> 5;
    check(depth <= 16 && info < 28);
    const n = info < 24 ? BigInt(info) : number(take(1n << BigInt(info - 24)));
    check(info < 24 || n >= [24n, 1n << 8n, 1n << 16n, 1n << 32n][info - 24]);
    switch (major) {
      case 0: return n;
      case 1: return -1n - n;
      case 2: return take(n);
      case 3: { const b = take(n); try { return utf8.decode(b); } catch { return check(false); } }
      case 7: check(first === 0xf4 || first === 0xf5); return first === 0xf5;
    }
    check(major < 6 && n <= 131072n);
    if (major === 4) return Array.from({ length: Number(n) }, () => item(depth + 1));
    const pairs = new Map();
    for (let i = 0n, last = []; i < n; i++) {
      const from = at, key = item(depth + 1), raw = data.subarray(from, at);
      check(compare(last, raw) < 0 && (typeof key === 'bigint' || typeof key === 'string'));
      pairs.set(key, { value: item(depth + 1), raw: data.subarray(from, at) });
      last = raw;
    }
    return { pairs, raw: data.subarray(start, at) };
  }
  check(data.length <= 64 << 20);
  const value = item(1);
  check(at === data.length);
  return value;
}
function head(major, n) {
  const size = n < 24n ? 0 : n < 1n << 8n ? 1 : n < 1n << 16n ? 2 : n < 1n << 32n ? 4 : 8, out = [(major << 5) | (size ? 24 + Math.log2(size) : Number(n))];
  for (let i = size - 1; i >= 0; i--) out.push(Number((n >> BigInt(8 * i)) & 255n));
  return out;
}
const encode = (v) => typeof v === 'bigint' ? (v < 0n ? head(1, -1n - v) : head(0, v)) : typeof v === 'string' ? join(head(3, BigInt(ascii(v).length)), ascii(v))
  : v instanceof Uint8Array ? join(head(2, BigInt(v.length)), v) : v.raw ? v.raw : join(head(4, BigInt(v.length)), ...v.map(encode));
const numbered = (...values) => join(head(5, BigInt(values.length)), ...values.map((v, i) => join(encode(BigInt(i + 1)), encode(v))));

// ---- what is encoded. A field that may be absent is absent when it is empty. ----
const a = (what, ok) => (v) => { must(ok(v), `${what} was expected`); return v; };
const text = a('text', (v) => typeof v === 'string'), bytes = a('bytes', (v) => v instanceof Uint8Array), bool = a('a boolean', (v) => typeof v === 'boolean');
const sized = (n) => a(`a value of ${n} bytes`, (v) => v instanceof Uint8Array && v.length === n), digest = sized(32), uuid = sized(16);
const uint = a('a number', (v) => typeof v === 'bigint' && v >= 0n), int = a('a number', (v) => typeof v === 'bigint' && BigInt.asIntN(64, v) === v);
const list = (type) => (v) => a('a list', Array.isArray)(v).map(type), isMap = a('a map', (v) => v?.pairs instanceof Map);
const words = (v) => new Map(Array.from(isMap(v).pairs, ([k, x]) => [text(k), text(x.value)]));
const none = (v) => v === '' || v === false || v.length === 0 || v.size === 0 || v.none || (v instanceof Uint8Array && v.length === 32 && !v.some((x) => x));
const struct = (...fields) => (v) => { // fields are [key, name, type, may be absent]
  const out = { raw: isMap(v).raw, pairs: v.pairs };
  for (const key of v.pairs.keys()) must(fields.some(([known]) => BigInt(known) === key), `a map has the unknown key ${key}`);
  for (const [key, name, type, optional] of fields) {
    const pair = v.pairs.get(BigInt(key));
    must(pair || optional, `${name} is missing`);
    if (pair) out[name] = type(pair.value);
    must(!pair || !optional || !none(out[name]), `${name} is there and empty`);
  }
  return out;
};
const NAME = /^[a-z0-9][a-z0-9._-]{0,62}$/;
function id(v) {
  if (v === '') return { text: v, none: true };
  const [, domain, tenant, kind, name] = /^spiffe:\/\/([^/]*)\/([^/]*)\/(agent|human|workload)\/([^/]*)$/.exec(text(v)) ?? must(false, `${v} is nobody's name`);
  must([domain, tenant, name].every((x) => NAME.test(x)), `${v} is nobody's name`);
  return { text: v, domain, tenant, kind, name };
}
function money(v) {
  if (v === '') return { none: true };
  const [, sign, whole, part, currency] = /^(-?)(0|[1-9]\d*)\.(\d{2}|\d{2,8}[1-9]) ([A-Z]{3})$/.exec(text(v)) ?? must(false, 'an amount is malformed');
  const nanos = BigInt(whole + part.padEnd(9, '0'));
  must(v.length <= 64 && nanos < 1n << 127n && (nanos || !sign), 'an amount is malformed');
  return { nanos: sign ? -nanos : nanos, currency };
}
function publicKey(v) {
  const k = struct([1, 'algorithm', text], [2, 'bytes', bytes])(v), sum = sha3_256(k.raw);
  return { ...k, fingerprint: 'sha3-256:' + hex(sum), id: hex(sum.subarray(0, 16)) };
}
const signature = struct([1, 'algorithm', text], [2, 'bytes', bytes], [3, 'key', text]), signed = struct([1, 'body', bytes], [2, 'signature', signature]);
const certificate = struct([1, 'version', uint], [2, 'role', text], [3, 'name', text], [4, 'key', publicKey], [5, 'not before', int]);
const proof = (v) => { const p = struct([1, 'kind', text], [2, 'data', bytes, true])(v); return { ...p, none: !p.kind && !p.data }; };
const scope = struct([1, 'actions', list(text)], [2, 'resources', list(text)], [3, 'spend', money, true]);
const link = struct([1, 'version', uint], [2, 'issuer', id], [3, 'subject', id], [4, 'key', publicKey], [5, 'scope', scope], [6, 'notBefore', int], [7, 'notAfter', int],
  [8, 'depth', uint], [9, 'issuer epoch', uint], [10, 'subject epoch', uint], [11, 'parent', digest, true], [12, 'proof', proof, true], [13, 'nonce', uuid]);
const policy = struct([1, 'id', text], [2, 'digest', digest]);
const consent = struct([1, 'request', digest], [2, 'id', text], [3, 'approver', text], [4, 'channel', text], [5, 'verification', text], [6, 'human', bool],
  [7, 'policy', policy], [8, 'expires', int]);
const record = struct([1, 'id', uuid], [2, 'stamp', struct([1, 'logical', uint], [2, 'physical', int], [3, 'source', text], [4, 'node', text])], [3, 'who', id],
  [4, 'human', id, true], [5, 'chain', digest, true], [6, 'what', text], [7, 'resource', text], [8, 'args', digest, true], [9, 'why', text, true], [10, 'outcome', text],
  [11, 'decision', struct([1, 'kind', text], [2, 'reason', text, true], [3, 'policies', list(policy), true], [4, 'version', digest, true]), true],
  [12, 'consents', list(consent), true], [13, 'usage', struct([1, 'prompt', int], [2, 'completion', int], [3, 'estimated', bool, true]), true], [14, 'sandbox', text, true],
  [15, 'isolation', text, true], [16, 'trace', text, true], [17, 'detail', words, true], [18, 'signature', signature, true], [19, 'signature status', text, true]);
const bundle = struct([1, 'version', uint], [2, 'receipts', list(struct([1, 'leaf', bytes], [2, 'index', int], [3, 'proof', list(bytes)]))], [3, 'links', list(signed)],
  [4, 'checkpoint', bytes], [5, 'keys', struct([1, 'root', publicKey], [2, 'certificates', list(signed)])]);

// ---- signatures: each is for a purpose, which is its context ----
const little = (b) => number(Uint8Array.from(b).reverse());
function edVerify(sig, message, key, prefix = []) { // RFC 8032, without the cofactor
  const s = little(sig.subarray(32)), order = ed25519.Point.Fn.ORDER;
  if (s >= order) return false;
  try {
    const k = little(sha512(join(prefix, sig.subarray(0, 32), key, message))) % order, A = ed25519.Point.fromBytes(key, true);
    return same(ed25519.Point.BASE.multiplyUnsafe(s).subtract(A.multiplyUnsafe(k)).toBytes(), sig.subarray(0, 32));
  } catch { return false; }
}
const dsaVerify = (sig, message, key, context) => { try { return ml_dsa65.verify(sig, message, key, { context: ascii(context) }); } catch { return false; } };
const LABEL = 'COMPSIG-MLDSA65-Ed25519-SHA512';
const algorithms = { // the sizes of key and signature, and what verifies
  'id-mldsa65-ed25519-sha512': [1984, 3373, (sig, message, key, purpose) => { // draft-ietf-lamps-pq-composite-sigs
    const m = join(ascii('CompositeAlgorithmSignatures2025' + LABEL), [purpose.length], ascii(purpose), sha512(message));
    return dsaVerify(sig.subarray(0, 3309), m, key.subarray(0, 1952), LABEL) && edVerify(sig.subarray(3309), m, key.subarray(1952));
  }],
  'ml-dsa-65': [1952, 3309, dsaVerify],
  ed25519: [32, 64, (sig, message, key, purpose) => edVerify(sig, sha512(message), key, join(ascii('SigEd25519 no Ed25519 collisions'), [1, purpose.length], ascii(purpose)))],
};
function holds(memo, purpose, message, sig, key) { // memo remembers, by digest, what was computed
  const [keySize, size, check] = Object.hasOwn(algorithms, key.algorithm) ? algorithms[key.algorithm] : [];
  if (!check || sig.algorithm !== key.algorithm || sig.key !== key.id || key.bytes.length !== keySize || sig.bytes.length !== size) return false;
  const name = [ascii(purpose), key.raw, sig.bytes, message].map((x) => hex(sha256(x))).join();
  if (!memo.has(name)) memo.set(name, check(sig.bytes, message, key.bytes, purpose));
  return memo.get(name);
}

// ---- how a human was known: a passkey (WebAuthn level 3, section 7.2), a provider (OpenID Connect), or who held the data directory ----
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
      if (token === ':' && depth === 1) names.push(JSON.parse(last).toWellFormed());
      last = token;
    }
    must(source.trimStart()[0] === '{' && new Set(names).size === names.length);
    return value;
  } catch { return must(false, 'its client data is malformed'); }
}
function presence(l) { // that the human of the first link was there for it
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

// ---- the chain of delegation ----
const covers = (wide, p) => wide.endsWith('*') ? p.startsWith(wide.slice(0, -1)) : wide === p;
const patternWithin = (p, wide) => p.endsWith('*') ? wide.endsWith('*') && p.startsWith(wide.slice(0, -1)) : covers(wide, p);
const allWithin = (patterns, wide) => patterns.every((p) => wide.some((w) => patternWithin(p, w)));
const spendWithin = (spend, above) => !above || (spend && spend.currency === above.currency && spend.nanos <= above.nanos);
function rules(l, above) { // of one link below another; the first has none above
  must(l.version === 2n, 'has an unknown version');
  must(!l.issuer.none && !l.subject.none, 'names nobody');
  must(l.issuer.domain === l.subject.domain && l.issuer.tenant === l.subject.tenant, 'crosses tenants');
  must(l.subject.kind !== 'human', 'delegates to a human');
  must(l.notBefore < l.notAfter, 'is never in force');
  const patterns = [...l.scope.actions, ...l.scope.resources];
  must(l.scope.actions.length <= 256 && l.scope.resources.length <= 256 && patterns.every((p) => ascii(p).length <= 1024), 'has too many or too long patterns');
  must(!l.scope.spend || l.scope.spend.nanos >= 0n, 'allows to spend less than nothing');
  if (!above) {
    must(l.issuer.kind === 'human' && !l.parent, 'does not begin with a human');
    return presence(l);
  }
  must(l.issuer.text === above.subject.text, 'is not issued by the subject of the link above');
  must(!l.proof, 'claims a human\'s proof');
  must(l.notAfter <= above.notAfter, 'outlives the link above');
  must(l.depth < above.depth, 'goes deeper than the link above allows');
  must(allWithin(l.scope.actions, above.scope.actions) && allWithin(l.scope.resources, above.scope.resources) && spendWithin(l.scope.spend, above.scope.spend), 'passes on more than the link above');
  return must(l.parent && same(l.parent, above.digest), 'names another parent');
}
function verifyChain(memo, links, roots) {
  must(links.length <= 16, `a chain of ${links.length} links`);
  links.forEach((l, i) => {
    const of = `link ${i + 1} of the chain, from ${l.issuer.text} to ${l.subject.text}, `;
    must((i ? [links[i - 1].key] : roots).some((k) => holds(memo, 'creto/delegation/v1', l.signed.body, l.signed.signature, k)), of + 'is not signed by its issuer');
    try { rules(l, links[i - 1]); } catch (e) { throw e instanceof Wrong ? new Wrong(of + e.message) : e; }
  });
  return links;
}

// ---- keys, the log's head, inclusion ----
function trustedRoots(memo, { root, certificates }, own, pinned) {
  must(certificates.length <= 128, 'too many certificates');
  const parse = (s) => { try { return certificate(decode(s.body)); } catch { return null; } };
  let left = certificates.slice(own).map((s) => ({ ...s, certificate: parse(s) }));
  const other = `the bundle hangs on the root ${root.fingerprint}, not on the trusted ${pinned}`;
  const trusted = [root, ...left.filter((s) => s.certificate?.role === 'root').map((s) => s.certificate.key)].filter((k) => k.fingerprint === pinned).slice(0, 1);
  must(trusted.length, other);
  while (left.length) {
    const rest = [];
    for (const s of left) {
      const c = s.certificate, by = c && c.version === 1n && c.role === 'root' && trusted.some((k) => holds(memo, 'creto/key/v1', s.body, s.signature, k));
      if (by) trusted.push(c.key); else rest.push(s);
    }
    must(rest.length < left.length, 'a root is certified by none that is trusted');
    left = rest;
  }
  must(trusted.some((k) => k.id === root.id), other);
  return trusted;
}
function logHead(memo, b, own) {
  const certified = (i, role) => {
    const s = b.keys.certificates[i], c = s && holds(memo, 'creto/key/v1', s.body, s.signature, b.keys.root) && certificate(decode(s.body));
    return c && c.version === 1n && c.role === role ? c : must(false, 'the log\'s key is not certified by the root');
  };
  const [composite, plain] = within('key', () => {
    const [first, second] = [certified(0, 'checkpoint'), own > 1 ? certified(1, 'checkpoint-ed25519') : null];
    must(!second || (second.name === first.name && second.key.algorithm === 'ed25519-note' && second.key.bytes.length === 32), 'the log\'s Ed25519 key is not certified by the root');
    return [first, second];
  });
  return within('checkpoint', () => { // C2SP signed-note and tlog-checkpoint
    let lines;
    try { lines = utf8.decode(b.checkpoint).split('\n'); } catch { must(false, 'it is malformed'); }
    const origin = composite.name, [name, size, root, gap, ...sigs] = lines, keys = plain ? [plain, composite] : [composite];
    must(name === origin && /^[^\u0000-\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000+\ufffd]+$/.test(origin) && /^(0|[1-9]\d*)$/.test(size) && BigInt(size) < 1n << 63n, 'it is malformed');
    must(unbase64(root).length === 32 && gap === '' && sigs.length === keys.length + 1 && sigs.at(-1) === '', 'it is malformed');
    const signedText = ascii(lines.slice(0, 3).join('\n') + '\n');
    keys.forEach((c, i) => {
      must(sigs[i].startsWith(`— ${origin} `), 'it is malformed');
      const blob = unbase64(sigs[i].slice(origin.length + 3)), sig = blob.subarray(4);
      const typed = join(ascii(origin + '\n'), c === plain ? [1] : [255, ...ascii(c.key.algorithm)], c.key.bytes), keyID = (c === plain ? sha256 : sha3_256)(typed).subarray(0, 4);
      const ok = c === plain ? sig.length === 64 && edVerify(sig, signedText, c.key.bytes)
        : holds(memo, 'creto/checkpoint/v1', signedText, { algorithm: c.key.algorithm, key: c.key.id, bytes: sig }, c.key);
      must(same(blob.subarray(0, 4), keyID) && ok, 'its signature does not hold');
    });
    return { origin, size: BigInt(size), root: unbase64(root) };
  });
}
function included(leaf, index, path, { size, root }) { // RFC 6962, section 2.1.1
  const lacks = 'the inclusion proof does not lead to the root', left = [...path];
  const subtree = (from, to) => {
    if (to - from === 1n) return must(left.length === 0, lacks) ?? sha256(join([0], leaf));
    let half = 1n;
    while (half * 2n < to - from) half *= 2n;
    must(left.length > 0, lacks);
    const other = left.pop(), below = index < from + half ? subtree(from, from + half) : subtree(from + half, to);
    return sha256(index < from + half ? join([1], below, other) : join([1], other, below));
  };
  must(path.every((h) => h.length === 32) && index >= 0n && index < size && same(subtree(0n, size), root), lacks);
}

/**
 * verify checks a whole bundle. root is the fingerprint that is trusted ('' for none, which leaves trusted false).
 * It returns what is proven and throws Refused for what does not hold.
 */
export function verify(data, root = '', memo = new Map()) {
  const b = within('bundle', () => {
    const parsed = bundle(decode(data));
    must(parsed.version === 1n, `version ${parsed.version}; this verifier knows 1`);
    return parsed;
  });
  let second;
  try { second = certificate(decode(b.keys.certificates[1].body)).role; } catch { /* it is another's, or none */ }
  const own = second === 'checkpoint-ed25519' ? 2 : Math.min(1, b.keys.certificates.length), pinned = root || b.keys.root.fingerprint;
  const roots = within('key', () => trustedRoots(memo, b.keys, own, pinned)), head = logHead(memo, b, own);
  const links = b.links.map((s, i) => within(`link ${i + 1}`, () => ({ ...link(decode(s.body)), signed: s, digest: sha3_256(s.body), used: false })));
  const byDigest = new Map(links.map((l) => [hex(l.digest), l])), chains = new Map();
  for (let l of links) {
    const chain = [];
    for (; l && chain.length <= 16; l = byDigest.get(l.parent && hex(l.parent))) chain.unshift(l);
    chains.set(hex(sha3_256(encode(chain.map((x) => x.digest)))), { chain, verified: false });
  }
  const spent = new Set();
  let last = -1n;
  const records = b.receipts.map(({ leaf, index, proof: path }, i) => within(`record ${i + 1} at index ${index}`, () => {
    included(leaf, index, path, head);
    const r = record(decode(leaf)), zero = new Uint8Array(32), of = chains.get(hex(r.chain ?? zero));
    for (const c of r.consents ?? []) {
      const question = numbered(c.id, r.who.tenant ?? '', r.who.text, r.chain ?? zero, r.what, r.resource, r.args ?? zero, c.policy, c.expires);
      must(same(sha3_256(question), c.request), 'the consent is to another request than what was done');
      must(r.outcome === 'denied' || !spent.has(c.id), 'its consent was spent by another record');
    }
    for (const c of r.consents ?? []) if (r.outcome !== 'denied') spent.add(c.id);
    must(index > last, 'out of order');
    last = index;
    if (!r.chain) return { index, record: r, chain: [] };
    must(of, 'the bundle lacks the links of its chain');
    of.verified ||= !!verifyChain(memo, of.chain, roots);
    must(of.chain.every((l) => r.stamp.physical >= l.notBefore * 1000000000n && r.stamp.physical < l.notAfter * 1000000000n), 'a link of its chain was not in force');
    must(of.chain.at(-1).subject.text === r.who.text, 'it names another agent than its chain');
    must(of.chain[0].issuer.text === (r.human?.text ?? ''), 'it names another human than its chain');
    for (const l of of.chain) byDigest.get(hex(l.digest)).used = true;
    return { index, record: r, chain: of.chain };
  }));
  within('bundle', () => must(records.length > 0, 'it holds no record'));
  links.forEach((l, i) => within(`link ${i + 1}`, () => {
    must(byDigest.get(hex(l.digest)).used, 'no record of the bundle needs it');
    must(i === 0 || compare(links[i - 1].digest, l.digest) < 0, 'out of order');
  }));
  return { trusted: root !== '', root: pinned, origin: head.origin, size: head.size, records };
}

if (globalThis.process?.argv?.[1] && import.meta.url.endsWith(globalThis.process.argv[1].split('/').pop())) {
  const { readFileSync } = await import('node:fs'), [file, flag, root = ''] = process.argv.slice(2);
  try {
    must(file && (flag === undefined || (flag === '--root' && /^sha3-256:[0-9a-f]{64}$/.test(root) && /[1-9a-f]/.test(root.slice(9)))), 'usage: node verify.mjs FILE [--root sha3-256:FINGERPRINT]');
    const v = verify(new Uint8Array(readFileSync(file)), root);
    for (const { index, record: r, chain } of v.records) console.log(JSON.stringify(`record ${index}  ${r.what} ${r.resource}  ${r.outcome}  ${[chain[0]?.issuer, ...chain.map((l) => l.subject)].map((x) => x?.name).join(' → ')}`));
    console.log(v.trusted ? `verify ${file} OK: ${v.records.length} records of ${v.size} in ${v.origin}, root trusted` : `verify ${file}: consistent, signer not trusted: its root is ${v.root}`);
    process.exitCode = v.trusted ? 0 : 3;
  } catch (e) {
    console.error(`verify ${file} FAILED: ${e instanceof Refused || e instanceof Wrong ? e.message : e.stack}`);
    process.exitCode = 1;
  }
}
