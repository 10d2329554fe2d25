// The second verifier of bundles, written from the format and not from the first: it shares no code and no table with the Go one
// (package receipt), and a test holds the two to one verdict on every bundle. It runs in browsers and in Node, as a program:
// node verify.mjs FILE [--root FINGERPRINT], which exits with 0 if FILE holds under the root, 3 if under one that nobody vouched for.
import { Tokenizer, decode as parse, encode as write, rfc8949EncodeOptions } from './cborg/cborg.js';
import { gcm } from './noble/ciphers/aes.js';
import { pow } from './noble/curves/abstract/modular.js';
import { ed25519 } from './noble/curves/ed25519.js';
import { p256 } from './noble/curves/nist.js';
import { bytesToHex, bytesToNumberBE, bytesToNumberLE, concatBytes, equalBytes } from './noble/curves/utils.js';
import { sha256, sha512 } from './noble/hashes/sha2.js';
import { sha3_256 } from './noble/hashes/sha3.js';
import { ml_dsa65 } from './noble/post-quantum/ml-dsa.js';

/** Refused says which part of a bundle does not hold, and why. */
export class Refused extends Error {}
const must = (ok, why) => { if (!ok) throw new Refused(why); return ok; };
const attempt = (f) => { try { return f(); } catch { return undefined; } }; // nothing where f throws
function within(part, f) { // names the part of which f is
  try { return f(); } catch (e) { throw e instanceof Refused ? new Refused(`${part}: ${e.message}`) : e; }
}
const each = (part, list, f) => list.forEach((x, i) => within(`${part} ${i + 1}`, () => f(x, i))); // by number
const utf8 = (b) => attempt(() => new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(b)) ?? must(false, 'it is no UTF-8');
const join = (parts) => concatBytes(...parts.map((p) => (typeof p === 'string' ? new TextEncoder().encode(p) : Uint8Array.from(p))));
const ascending = (list) => list.every((b, i) => i === 0 || bytesToHex(list[i - 1]) < bytesToHex(b));

// ---- CBOR in its one deterministic form (RFC 8949, section 4.2.1): numbers are bigints, maps are Maps ----
const encode = (v) => write(v, rfc8949EncodeOptions);
const strict = { useMaps: true, allowBigInt: true, allowIndefinite: false, retainStringBytes: true };
class Tokens extends Tokenizer { // with bounds, and with text whole, of which a Tokenizer drops a mark (U+FEFF) in front
  next() {
    const { type, value, byteValue } = super.next(), number = type.terminal && typeof value === 'number';
    must(type.terminal ? value != null : value <= 131072);
    return { type, value: byteValue ? utf8(byteValue) : number ? BigInt(value) : value };
  }
}
function decode(data) { // what is not in its one form does not encode to the same again
  const value = data.length <= 64 << 20 && attempt(() => parse(data, { ...strict, tokenizer: new Tokens(data, strict) }));
  return must(attempt(() => equalBytes(encode(value), data)) && value, 'it is no canonical encoding');
}

// ---- types: of a value a function returns what it means ----
const NAME = '[a-z0-9][a-z0-9._-]{0,62}';
const ID = new RegExp(`^(?<text>spiffe://(?<domain>${NAME})/(?<tenant>${NAME})/(?<kind>agent|human|workload)/(?<name>${NAME}))$`);
const MONEY = /^(?<whole>0|[1-9]\d*)\.(?<part>\d{2}|\d{2,8}[1-9]) (?<currency>[A-Z]{3})$/; // nobody may spend less than nothing
const isText = (v) => typeof v === 'string', isBytes = (v, size = v?.length) => v instanceof Uint8Array && v.length === size;
const itself = (holds) => (v) => { must(holds(v), 'a value is of another type'); return v; };
const match = (form, v) => must(isText(v) && form.exec(v)?.groups, 'a text has another form');
const types = {
  text: itself(isText), words: itself((v) => v instanceof Map && [...v].flat().every(isText)), bool: itself((v) => typeof v === 'boolean'),
  bytes: itself((v) => isBytes(v)), bytes16: itself((v) => isBytes(v, 16)), bytes32: itself((v) => isBytes(v, 32)),
  uint: itself((v) => typeof v === 'bigint' && v >= 0n), int: itself((v) => typeof v === 'bigint' && BigInt.asIntN(64, v) === v),
  id: (v) => (v === '' ? { text: '' } : match(ID, v)), // '' is nobody
  money(v) {
    const { whole, part, currency } = match(MONEY, v), nanos = BigInt(whole + part.padEnd(9, '0'));
    return must(nanos < 1n << 127n && { nanos, currency }, 'an amount is too large');
  },
  key(v) {
    const sum = bytesToHex(sha3_256(encode(v)));
    return { ...read('plainKey', v), id: sum.slice(0, 32), fingerprint: `sha3-256:${sum}` };
  },
  // The fields of a map, numbered from 1 unless they say otherwise; name? is absent when it is empty, type* a list, =n the number n.
  bundle: 'version =1, receipts receipt*, links signed*, checkpoint bytes, keys keys, disclosures? disclosure*',
  receipt: 'leaf bytes, index int, proof bytes*', disclosure: 'index int, subject bytes16, key bytes',
  keys: 'root key, certificates signed*', certificate: 'version =1, role text, name text, key key, notBefore int',
  plainKey: 'algorithm text, bytes bytes', signed: 'body bytes, signature signature', signature: 'algorithm text, bytes bytes, key text',
  link: 'version =2, issuer id, subject id, key key, scope scope, notBefore int, notAfter int, depth uint, issuerEpoch uint, ' +
    'subjectEpoch uint, parent? bytes32, proof? proof, nonce bytes16',
  scope: 'actions text*, resources text*, spend? money', proof: 'kind text, data? bytes',
  webauthn: 'party text, origin text, credential bytes, key bytes, data bytes, client bytes, signature bytes',
  oidc: 'issuer text, subject text, audience text, tokenHash bytes32, time int, nonce text',
  es256: 'type =2, 3 algorithm =-7, -1 curve =1, -2 x bytes32, -3 y bytes32', // COSE keys (RFC 9053; RFC 8812)
  eddsa: 'type =1, 3 algorithm =-8, -1 curve =6, -2 x bytes32', rs256: 'type =3, 3 algorithm =-257, -1 n bytes, -2 e bytes',
  record: 'id bytes16, stamp stamp, who id, human? id, chain? bytes32, what text, resource text, args? bytes32, why? text, ' +
    'outcome text, decision? decision, consents? consent*, usage? usage, sandbox? text, isolation? text, trace? text, ' +
    'detail? words, signature? signature, status? text, personal? personal*',
  stamp: 'logical uint, physical int, source text, node text, uncertainty? int', usage: 'prompt int, completion int, estimated? bool',
  decision: 'kind text, reason? text, policies? policy*, version? bytes32', policy: 'id text, digest bytes32',
  consent: 'request bytes32, id text, approver text, channel text, known text, human bool, policy policy, expires int',
  personal: 'subject bytes16, commitment bytes, box bytes', person: 'principal id, why? text, detail? words',
};
const isEmpty = (v) => ['', false, 0n].includes(v) || v.length === 0 || v.size === 0 || (isBytes(v, 32) && v.every((x) => x === 0));
function read(type, v) { // returns what v means as the type; a map is an object with the fields' names
  if (type.startsWith('=')) return must(v === BigInt(type.slice(1)), `${type.slice(1)} was expected`);
  if (type.endsWith('*')) return must(Array.isArray(v) && v, 'a list was expected').map((x) => read(type.slice(0, -1), x));
  if (typeof types[type] === 'function') return types[type](v);
  const out = {}, fields = must(v instanceof Map && types[type], 'a map was expected').split(', ');
  for (const [i, field] of fields.entries()) {
    const [, number = i + 1, name, optional, of] = /^(?:(-?\d+) )?(\w+)(\??) (.+)$/.exec(field), value = v.get(BigInt(number));
    must(value === undefined ? optional : !optional || !isEmpty(value), `${name} is missing, or there and empty`);
    if (value !== undefined) out[name] = read(of, value);
  }
  must(Object.keys(out).length === v.size, 'a map has an unknown key');
  return out;
}

// ---- signatures of nodes and agents: each is for a purpose, which is its context ----
const { BASE, Fn } = ed25519.Point, LABEL = 'COMPSIG-MLDSA65-Ed25519-SHA512', PH = 'SigEd25519 no Ed25519 collisions';
function edVerify(sig, message, key, prefix = '') { // Ed25519 (RFC 8032), without the cofactor; its variants sign a prefix in front
  const R = sig.subarray(0, 32), s = bytesToNumberLE(sig.subarray(32)), k = bytesToNumberLE(sha512(join([prefix, R, key, message])));
  const expected = () => BASE.multiplyUnsafe(s).subtract(ed25519.Point.fromBytes(key, true).multiplyUnsafe(k % Fn.ORDER)).toBytes();
  return sig.length === 64 && s < Fn.ORDER && attempt(() => equalBytes(expected(), R));
}
const phVerify = (sig, message, key, purpose) => edVerify(sig, sha512(message), key, join([PH, [1, purpose.length], purpose]));
const dsaVerify = (sig, message, key, purpose) => attempt(() => ml_dsa65.verify(sig, message, key, { context: join([purpose]) }));
function compositeVerify(sig, message, key, purpose) { // draft-ietf-lamps-pq-composite-sigs
  const both = join(['CompositeAlgorithmSignatures2025', LABEL, [purpose.length], purpose, sha512(message)]);
  return dsaVerify(sig.subarray(0, 3309), both, key.subarray(0, 1952), LABEL) && edVerify(sig.subarray(3309), both, key.subarray(1952));
}
const algorithms = new Map([['id-mldsa65-ed25519-sha512', compositeVerify], ['ml-dsa-65', dsaVerify], ['ed25519', phVerify]]);
/** holds says whether the signature is one by the key for the purpose. */
export const holds = (purpose, message, sig, key) => sig.algorithm === key.algorithm && sig.key === key.id &&
  algorithms.get(key.algorithm)?.(sig.bytes, message, key.bytes, purpose);

// ---- how the human of a chain was known: a passkey (WebAuthn level 3), an identity provider, or who held the data directory ----
function rsaVerify(sig, message, { n, e }) { // RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017, section 8.2.2)
  const [s, N, E] = [sig, n, e].map(bytesToNumberBE), size = Math.ceil(N.toString(16).length / 2);
  if (N < 1n << 2047n || N >= 1n << 4096n || N % 2n === 0n || e.length > 3 || E < 2n || E % 2n === 0n) return false;
  const block = `0x0001${'ff'.repeat(size - 54)}003031300d060960864801650304020105000420${bytesToHex(sha256(message))}`;
  return sig.length === size && s < N && pow(s, E, N) === BigInt(block);
}
function passkeyVerify(sig, message, cose) {
  const [ec, ed, rsa] = ['es256', 'eddsa', 'rs256'].map((form) => attempt(() => read(form, cose)));
  if (ec) return attempt(() => p256.verify(sig, message, join([[4], ec.x, ec.y]), { lowS: false, format: 'der' }));
  return ed ? edVerify(sig, message, ed.x) : rsa && rsaVerify(sig, message, rsa);
}
const bounded = (limit, ...parts) => parts.every((x) => x.length > 0 && join([x]).length <= limit);
function authenticated(e, challenge, l) { // OpenID Connect Core 1.0, as the node saw it
  must(e.issuer.length <= 512 && /^https?:\/\/[A-Za-z0-9.-]+(:[0-9]{1,5})?(\/[!"$->@-~]*)?$/.test(e.issuer), 'its issuer is no address');
  must(bounded(255, e.subject) && bounded(512, e.audience), 'its subject or audience has a wrong size');
  must(e.nonce === challenge && e.time >= l.notBefore - 120n && e.time < l.notAfter, 'its OIDC evidence is for something else');
}
function asserted(a, challenge) { // WebAuthn level 3, section 7.2
  must(bounded(1023, a.credential) && bounded(2048, a.key, a.data) && bounded(4096, a.client) && bounded(1024, a.signature), 'a size');
  const [, scheme, host] = /^(https?):\/\/([a-z0-9.-]+)(?::[0-9]{1,5})?$/.exec(a.origin) ?? [];
  const below = (name) => `.${host}`.endsWith(`.${name}`);
  must(host && a.origin.length <= 512 && a.party && below(a.party), 'its origin is none of its party');
  must(scheme === 'https' || below('localhost'), 'its origin is not secure');
  const flags = a.data[32]; // present 1, verified 4, backup possible 8 and made 16, attested 64, extended 128
  const c = attempt(() => JSON.parse(utf8(a.client))) ?? {};
  must(c.type === 'webauthn.get' && c.challenge === challenge && c.origin === a.origin, 'its assertion is for something else');
  must(c.topOrigin === undefined && [undefined, false].includes(c.crossOrigin), 'it was made inside another site\'s page');
  must(a.data.length >= 37 && equalBytes(a.data.subarray(0, 32), sha256(join([a.party]))), 'it is for another party');
  must((flags & (64 | 4 | 1)) === 5 && (flags & (16 | 8)) !== 16 && (flags >= 128) === a.data.length > 37, 'its authenticator data');
  must(passkeyVerify(a.signature, join([a.data, sha256(a.client)]), decode(a.key)), 'its signature is wrong');
}
function presence(l) { // checks the proof, and leaves what it says in l.proof.said
  const { kind, data = new Uint8Array() } = l.proof ?? {};
  if (kind === 'bootstrap') return must(data.length === 0, 'has a bootstrap proof with data');
  must((kind === 'webauthn' || kind === 'oidc') && data.length <= 16 << 10, 'has no proof of its human that is known');
  const digest = sha3_256(encode(new Map([...decode(l.body)].filter(([key]) => key !== 12n)))); // of whatever the link says but the proof
  const challenge = base64(digest).replaceAll('+', '-').replaceAll('/', '_').replace('=', '');
  l.proof.said = read(kind, decode(data));
  return kind === 'oidc' ? authenticated(l.proof.said, challenge, l) : asserted(l.proof.said, challenge);
}

// ---- the chain of delegation ----
const covers = (wide, p) => wide === p || (wide.endsWith('*') && p.startsWith(wide.slice(0, -1)));
const allWithin = (patterns, above) => patterns.every((p) => above.some((wide) => covers(wide, p)));
function rules(l, above) { // of one link below another; the first has none above
  const { actions, resources, spend } = l.scope, few = (list) => list.length <= 256 && list.every((p) => join([p]).length <= 1024);
  must(l.issuer.domain && l.issuer.domain === l.subject.domain && l.issuer.tenant === l.subject.tenant, 'names nobody, or crosses tenants');
  must(l.subject.kind !== 'human', 'delegates to a human');
  must(l.notBefore < l.notAfter, 'is never in force');
  must(few(actions) && few(resources), 'has too many or too long patterns');
  if (!above) return must(l.issuer.kind === 'human' && !l.parent, 'does not begin with a human') && presence(l);
  const most = above.scope.spend, affordable = !most || (spend && spend.currency === most.currency && spend.nanos <= most.nanos);
  must(l.issuer.text === above.subject.text && !l.proof, 'is not issued by the subject above it, or claims a human\'s proof');
  must(l.notAfter <= above.notAfter && l.depth < above.depth, 'outlives the link above, or goes deeper than it allows');
  return must(affordable && allWithin(actions, above.scope.actions) && allWithin(resources, above.scope.resources), 'passes on too much');
}
function verifyChain(chain, roots, holds) {
  must(chain.length <= 16, 'its chain has too many links');
  each('link', chain, (l, i) => {
    if (l.verified) return; // its digest of the link above makes all that is above the same in every chain
    must((i ? [chain[i - 1].key] : roots).some((k) => holds('creto/delegation/v1', l.body, l.signature, k)), 'is not signed by its issuer');
    rules(l, chain[i - 1]);
    l.verified = true;
  });
}

// ---- keys, the log's head, inclusion ----
function trustedKeys({ root, certificates }, pinned, holds) { // the roots, and the log's keys in the order of their signatures
  must(certificates.length <= 128, 'too many certificates');
  const [composite, ...others] = certificates.map((s) => ({ ...s, ...read('certificate', decode(s.body)) }));
  const logs = [...(others[0]?.role === PLAIN ? [others.shift()] : []), composite], left = new Set(others);
  const certifies = (k, c) => holds('creto/key/v1', c.body, c.signature, k);
  const roots = [root, ...others.map((c) => c.role === 'root' && c.key)].filter((k) => k && k.fingerprint === pinned).slice(0, 1);
  for (const by of roots) { // each adds those that it certifies
    for (const c of left) if (c.role === 'root' && certifies(by, c)) left.delete(c) && roots.push(c.key);
  }
  must(roots.some((k) => k.id === root.id), `the bundle hangs on the root ${root.fingerprint}, not on the trusted ${pinned}`);
  must(left.size === 0, 'a root is certified by none that is trusted');
  must(composite?.role === 'checkpoint' && logs.every((c) => certifies(root, c)), 'the log\'s key is not certified by the root');
  must(logs.every((c) => c === composite || (c.name === composite.name && c.key.algorithm === 'ed25519-note')), 'its Ed25519 key');
  return { roots, logs };
}
const PLAIN = 'checkpoint-ed25519', ORIGIN = /^[^\u0000-\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000+]+$/;
const base64 = (b) => btoa(Array.from(b, (x) => String.fromCharCode(x)).join(''));
const unbase64 = (s) => Uint8Array.from(attempt(() => atob(s)) ?? '', (c) => c.charCodeAt(0)); // in any form
function logHead(note, keys, holds) { // C2SP tlog-checkpoint and signed-note, in the one form of what it says
  const origin = keys[0].name, [, digits, hash, , ...lines] = utf8(note).split('\n'), size = attempt(() => BigInt(digits)) ?? -1n;
  const root = unbase64(hash), signed = join([`${origin}\n${size}\n${base64(root)}\n`]), whole = [signed, '\n'];
  for (const [i, { role, key }] of keys.entries()) {
    const made = { algorithm: key.algorithm, key: key.id, bytes: unbase64(lines[i]?.slice(origin.length + 3)).subarray(4) };
    const plain = role === PLAIN, typed = join([origin, '\n', plain ? [1] : [255], plain ? '' : key.algorithm, key.bytes]);
    whole.push(`— ${origin} ${base64(join([(plain ? sha256 : sha3_256)(typed).subarray(0, 4), made.bytes]))}\n`);
    must(plain ? edVerify(made.bytes, signed, key.bytes) : holds('creto/checkpoint/v1', signed, made, key), 'its signature is wrong');
  }
  must(equalBytes(join(whole), note) && ORIGIN.test(origin) && root.length === 32 && size >= 0n && size < 1n << 63n, 'it is malformed');
  return { origin, size, root };
}
function treeRoot(leaf, index, size, path) { // RFC 6962, section 2.1.1
  must(size === 1n ? path.length === 0 : path.at(-1)?.length === 32, 'its inclusion proof is of a wrong length');
  if (size === 1n) return sha256(join([[0], leaf]));
  const half = 1n << BigInt((size - 1n).toString(2).length - 1), below = (i, n) => treeRoot(leaf, i, n, path.slice(0, -1)); // a power of 2
  return sha256(join(index < half ? [[1], below(index, half), path.at(-1)] : [[1], path.at(-1), below(index - half, size - half)]));
}

// ---- what a record says of people ----
const PSEUDONYM = /^subject\.[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;
function unseal(r, { key, subject }, { commitment, box }) { // by a key that is of this box alone, so that its nonce is zero
  must(key.length === 32 && equalBytes(sha256(join(['creto/audit/commitment/v1\0', key])), commitment), 'it commits to another key');
  const plain = attempt(() => gcm(key, new Uint8Array(12), join([r.id, subject])).decrypt(box));
  const person = read('person', decode(must(plain, 'a personal field does not open')));
  return must(person.principal.kind === 'human' && person, 'a personal field is of no human');
}
function disclose(r, keys) { // puts back what the keys open; each must open one thing
  for (const [i, box] of (r.personal ?? []).entries()) {
    const key = keys.find((x) => equalBytes(x.subject, box.subject));
    if (!key) continue;
    key.uses = (key.uses ?? 0) + 1;
    const { principal, why, detail = new Map() } = unseal(r, key, box);
    const name = bytesToHex(box.subject).replace(/^(.{8})(.{4})(.{4})(.{4})/, 'subject.$1-$2-$3-$4-');
    const sealed = `spiffe://${principal.domain}/${principal.tenant}/human/${name}`, put = (x) => (x === sealed ? principal.text : x);
    if (r.who.text === sealed) r.who = principal;
    if (r.human?.text === sealed) r.human = principal;
    if (r.resource === `Human::${name}` && principal.tenant === r.who.tenant) r.resource = `Human::${principal.name}`;
    for (const c of r.consents ?? []) c.approver = put(c.approver);
    r.detail = new Map([...Array.from(r.detail ?? [], ([k, v]) => [k, put(v)]), ...(i === 0 ? detail : [])]);
    if (i === 0 && why) r.why = why;
  }
  must(ascending(keys.map((d) => d.subject)) && keys.every((d) => d.uses === 1), 'its disclosures are out of order, or of nobody in it');
}
function consented(r, spent) { // each consent is to what was done, and is spent once
  const zero = new Uint8Array(32), map = (...values) => new Map(values.map((v, i) => [BigInt(i + 1), v]));
  const done = [r.who.tenant ?? '', r.who.text, r.chain ?? zero, r.what, r.resource, r.args ?? zero];
  for (const c of r.consents ?? []) {
    const question = encode(map(c.id, ...done, map(c.policy.id, c.policy.digest), c.expires));
    must(equalBytes(sha3_256(question), c.request), 'the consent is to another request than what was done');
    if (r.outcome !== 'denied') must(!spent.has(c.id), 'its consent was spent before') && spent.add(c.id);
  }
}

/** verify returns what a bundle proves, or throws Refused. root is the trusted fingerprint, '' for none; check may stand in for holds. */
export function verify(data, root = '', check = holds) {
  const b = within('bundle', () => read('bundle', decode(data))), pinned = root || b.keys.root.fingerprint;
  const { roots, logs } = within('key', () => trustedKeys(b.keys, pinned, check));
  const head = within('checkpoint', () => logHead(b.checkpoint, logs, check));
  const links = new Map(), chains = new Map(), spent = new Set(), records = [];
  each('link', b.links, ({ body, signature }, i) => {
    const digest = sha3_256(body);
    must(i === 0 || ascending([sha3_256(b.links[i - 1].body), digest]), 'out of order');
    links.set(bytesToHex(digest), { ...read('link', decode(body)), body, signature, digest });
  });
  const above = (l, room = 17) => (l && room ? [...above(l.parent && links.get(bytesToHex(l.parent)), room - 1), l] : []);
  for (const chain of [...links.values()].map((l) => above(l))) chains.set(bytesToHex(sha3_256(encode(chain.map((l) => l.digest)))), chain);
  each('record', b.receipts, ({ leaf, index, proof }, i) => {
    must(index >= 0n && index < head.size && equalBytes(treeRoot(leaf, index, head.size, proof), head.root), 'it is not in the log');
    must(i === 0 || b.receipts[i - 1].index < index, 'out of order');
    const r = read('record', decode(leaf)), chain = r.chain ? chains.get(bytesToHex(r.chain)) : [], keys = [];
    consented(r, spent);
    while (b.disclosures?.[0]?.index === index) keys.push(b.disclosures.shift());
    disclose(r, keys);
    records.push({ index, record: r, chain: must(chain, 'the bundle lacks the links of its chain') });
    if (!r.chain) return;
    verifyChain(chain, roots, check);
    const time = r.stamp.physical, second = 1000000000n, human = r.human ?? { text: '' };
    must(chain.every((l) => time >= l.notBefore * second && time < l.notAfter * second), 'a link of its chain was not in force');
    must(chain.at(-1).subject.text === r.who.text, 'it names another agent');
    must(chain[0].issuer.text === human.text || (human.kind === 'human' && PSEUDONYM.test(human.name)), 'it names another human');
  });
  within('bundle', () => must(records.length > 0, 'it holds no record'));
  each('link', [...links.values()], (l) => must(l.verified, 'no record of the bundle needs it'));
  within('disclosure', () => must(!b.disclosures?.length, 'one opens nothing of a record, or is out of order'));
  return { trusted: root !== '', root: pinned, origin: head.origin, size: head.size, records };
}

if (globalThis.process?.argv?.[1] && import.meta.url.endsWith(globalThis.process.argv[1].split('/').pop())) {
  const { readFileSync } = await import('node:fs'), [file, flag, root] = process.argv.slice(2);
  try {
    must(file && (flag === '--root' ? root : !flag), 'usage: node verify.mjs FILE [--root sha3-256:FINGERPRINT]');
    const v = verify(new Uint8Array(readFileSync(file)), root), what = `${v.records.length} records of ${v.size} in ${v.origin}`;
    for (const { index, record: r } of v.records) console.log(JSON.stringify([String(index), r.who.text, r.what, r.resource, r.outcome]));
    console.log(`verify ${file}${v.trusted ? ` OK: ${what}, root trusted` : `: consistent, signer not trusted: its root is ${v.root}`}`);
    process.exitCode = v.trusted ? 0 : 3;
  } catch (e) {
    console.error(`verify ${file} FAILED: ${e.message}`);
    process.exitCode = 1;
  }
}
