// How a bundle is written: CBOR in its one deterministic form (RFC 8949, section 4.2.1), and the types of what is in it.
import { bytesToNumberBE, equalBytes, numberToBytesBE } from './noble/curves/utils.js';
import { bytesToHex, utf8ToBytes } from './noble/hashes/utils.js';
import { sha3_256 } from './noble/hashes/sha3.js';

/** Refused says which part of a bundle does not hold, and why; must throws it, and returns what holds; within names the part. */
export class Refused extends Error {}
export const must = (ok, why) => { if (!ok) throw new Refused(why); return ok; };
export async function within(part, f) {
  try { return await f(); } catch (e) { throw e instanceof Refused ? new Refused(`${part}: ${e.message}`) : e; }
}
/** attempt returns what f does, and nothing where it throws. */
export const attempt = (f) => { try { return f(); } catch { return undefined; } };
/** utf8 reads text. What is not UTF-8 comes out with U+FFFD, which encodes to something else. */
export const utf8 = (b) => new TextDecoder('utf-8', { ignoreBOM: true }).decode(b);
export function join(parts) { // of bytes and text
  const all = parts.map((p) => (typeof p === 'string' ? utf8ToBytes(p) : p));
  const out = new Uint8Array(all.reduce((size, p) => size + p.length, 0));
  all.reduce((at, p) => { out.set(p, at); return at + p.length; }, 0);
  return out;
}
/** ascending reports whether bytes are sorted, without any twice. */
export const ascending = (list) => list.every((b, i) => i === 0 || bytesToHex(list[i - 1]) < bytesToHex(b));

// ---- CBOR: numbers are bigints, maps are Maps ----
function head(major, n) { // n is in the first byte, or follows in 1, 2, 4 or 8
  const log = [0, 1, 2, 3].find((i) => n < 1n << BigInt(8 << i));
  return n < 24n ? Uint8Array.of(major << 5 | Number(n)) : join([[major << 5 | 24 + log], numberToBytesBE(n, 1 << log)]);
}
export function encode(v) {
  if (typeof v === 'boolean') return Uint8Array.of(v ? 0xf5 : 0xf4);
  if (typeof v === 'bigint') return v < 0n ? head(1, -1n - v) : head(0, v);
  if (typeof v === 'string') return join([head(3, BigInt(utf8ToBytes(v).length)), v]);
  if (v instanceof Uint8Array) return join([head(2, BigInt(v.length)), v]);
  if (Array.isArray(v)) return join([head(4, BigInt(v.length)), ...v.map(encode)]);
  const pairs = Array.from(v, ([key, value]) => [encode(key), encode(value)]).sort(([a], [b]) => (ascending([a, b]) ? -1 : 1));
  return join([head(5, BigInt(v.size)), ...pairs.flat()]);
}
export function decode(data) { // what is not in its one form does not encode to the same again
  let at = 0;
  const check = (ok) => must(ok, 'it is no canonical encoding');
  const take = (n) => { check(n <= BigInt(data.length - at)); at += Number(n); return data.subarray(at - Number(n), at); };
  function item(depth) {
    const [first] = take(1n), major = first >> 5, info = first & 31;
    check(depth <= 16 && info < 28 && major !== 6);
    const n = info < 24 ? BigInt(info) : bytesToNumberBE(take(1n << BigInt(info - 24)));
    if (major === 0) return n;
    if (major === 1) return -1n - n;
    if (major === 2) return take(n);
    if (major === 3) return utf8(take(n));
    if (major === 7) return first === 0xf5;
    check(n <= 131072n);
    if (major === 4) return Array.from({ length: Number(n) }, () => item(depth + 1));
    return new Map(Array.from({ length: Number(n) }, () => [item(depth + 1), item(depth + 1)]));
  }
  check(data.length <= 64 << 20);
  const value = item(1);
  check(at === data.length && equalBytes(encode(value), data));
  return value;
}

// ---- types: a function returns what a value means, or true if that is the value, or false if it is of another type ----
const NAME = '[a-z0-9][a-z0-9._-]{0,62}', KIND = 'agent|human|workload';
const ID = new RegExp(`^(?<text>spiffe://(?<domain>${NAME})/(?<tenant>${NAME})/(?<kind>${KIND})/(?<name>${NAME}))$`);
const MONEY = /^(?<whole>0|[1-9]\d*)\.(?<part>\d{2}|\d{2,8}[1-9]) (?<currency>[A-Z]{3})$/; // nobody may spend less than nothing
const match = (form, v) => (types.text(v) && form.exec(v)?.groups) || false;
const sized = (size) => (v) => v instanceof Uint8Array && v.length === size;
const types = {
  text: (v) => typeof v === 'string', words: (v) => v instanceof Map && [...v].flat().every(types.text),
  bytes: (v) => v instanceof Uint8Array, bytes16: sized(16), bytes32: sized(32), bool: (v) => typeof v === 'boolean',
  uint: (v) => typeof v === 'bigint' && v >= 0n, int: (v) => typeof v === 'bigint' && BigInt.asIntN(64, v) === v,
  id: (v) => (v === '' ? { text: '' } : match(ID, v)), // '' is nobody
  money(v) {
    const { whole, part, currency } = match(MONEY, v), nanos = currency && BigInt(whole + part.padEnd(9, '0'));
    return currency && nanos < 1n << 127n && { nanos, currency };
  },
  key(v) {
    const { algorithm, bytes } = read('plainKey', v), sum = bytesToHex(sha3_256(encode(v)));
    return { algorithm, bytes, id: sum.slice(0, 32), fingerprint: `sha3-256:${sum}` };
  },
  // The fields of a map: key, name and type of each, and a ? if it is absent when it is empty. type* is a list, =n the number n.
  bundle: '1 version =1, 2 receipts receipt*, 3 links signed*, 4 checkpoint bytes, 5 keys keys, 6 disclosures disclosure* ?',
  receipt: '1 leaf bytes, 2 index int, 3 proof bytes*', disclosure: '1 index int, 2 subject bytes16, 3 key bytes',
  keys: '1 root key, 2 certificates signed*', plainKey: '1 algorithm text, 2 bytes bytes',
  signed: '1 body bytes, 2 signature signature', signature: '1 algorithm text, 2 bytes bytes, 3 key text',
  certificate: '1 version =1, 2 role text, 3 name text, 4 key key, 5 notBefore int',
  link: '1 version =2, 2 issuer id, 3 subject id, 4 key key, 5 scope scope, 6 notBefore int, 7 notAfter int, 8 depth uint, ' +
    '9 issuerEpoch uint, 10 subjectEpoch uint, 11 parent bytes32 ?, 12 proof proof ?, 13 nonce bytes16',
  scope: '1 actions text*, 2 resources text*, 3 spend money ?', proof: '1 kind text, 2 data bytes ?',
  webauthn: '1 party text, 2 origin text, 3 credential bytes, 4 key bytes, 5 data bytes, 6 client bytes, 7 signature bytes',
  oidc: '1 issuer text, 2 subject text, 3 audience text, 4 tokenHash bytes32, 5 time int, 6 nonce text',
  es256: '1 type =2, 3 algorithm =-7, -1 curve =1, -2 x bytes32, -3 y bytes32', // COSE keys (RFC 9053; RFC 8812)
  eddsa: '1 type =1, 3 algorithm =-8, -1 curve =6, -2 x bytes32', rs256: '1 type =3, 3 algorithm =-257, -1 n bytes, -2 e bytes',
  record: '1 id bytes16, 2 stamp stamp, 3 who id, 4 human id ?, 5 chain bytes32 ?, 6 what text, 7 resource text, 8 args bytes32 ?, ' +
    '9 why text ?, 10 outcome text, 11 decision decision ?, 12 consents consent* ?, 13 usage usage ?, 14 sandbox text ?, ' +
    '15 isolation text ?, 16 trace text ?, 17 detail words ?, 18 signature signature ?, 19 status text ?, 20 personal personal* ?',
  stamp: '1 logical uint, 2 physical int, 3 source text, 4 node text, 5 uncertainty int ?',
  decision: '1 kind text, 2 reason text ?, 3 policies policy* ?, 4 version bytes32 ?', policy: '1 id text, 2 digest bytes32',
  consent: '1 request bytes32, 2 id text, 3 approver text, 4 channel text, 5 known text, 6 human bool, 7 policy policy, 8 expires int',
  usage: '1 prompt int, 2 completion int, 3 estimated bool ?', personal: '1 subject bytes16, 2 commitment bytes, 3 box bytes',
  person: '1 principal id, 2 why text ?, 3 detail words ?',
};
const isEmpty = (v) => ['', false, 0n].includes(v) || v.length === 0 || v.size === 0 || (types.bytes32(v) && v.every((x) => x === 0));
/** read returns what v means as the type; a map is an object with the fields' names. */
export function read(type, v) {
  if (type.startsWith('=')) return must(v === BigInt(type.slice(1)), `${type.slice(1)} was expected`);
  if (type.endsWith('*')) return must(Array.isArray(v) && v, 'a list was expected').map((x) => read(type.slice(0, -1), x));
  if (typeof types[type] === 'function') {
    const meaning = must(types[type](v), `a value of the type ${type} was expected`);
    return meaning === true ? v : meaning;
  }
  const out = {}, fields = must(v instanceof Map && types[type], 'a map was expected').split(', ').map((field) => field.split(' '));
  for (const [key, name, of, optional] of fields) {
    const value = v.get(BigInt(key));
    must(value === undefined ? optional : !optional || !isEmpty(value), `${name} is missing, or there and empty`);
    if (value !== undefined) out[name] = read(of, value);
  }
  must(Object.keys(out).length === v.size, 'a map has an unknown key');
  return out;
}
