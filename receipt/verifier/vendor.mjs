// Takes the files of @noble that verify.mjs needs from the npm registry into noble/, with relative imports in place of
// the packages' names, and writes their SHA-256 into vendor.json. Run it in this directory: node vendor.mjs
// The versions and the integrity of their archives are those of vendor.json: change them there to move on.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, posix } from 'node:path';

const entries = [
  'post-quantum/ml-dsa.js', 'curves/abstract/modular.js', 'curves/ed25519.js', 'curves/nist.js', 'curves/utils.js', 'hashes/sha2.js', 'hashes/sha3.js',
  'hashes/utils.js',
];
const pins = JSON.parse(readFileSync('vendor.json', 'utf8')), dir = mkdtempSync(join(tmpdir(), 'noble-'));
const digest = (algorithm, data, encoding) => createHash(algorithm).update(data).digest(encoding);
for (const [name, { version, integrity }] of Object.entries(pins.packages)) {
  const [{ filename }] = JSON.parse(execFileSync('npm', ['pack', '--json', `${name}@${version}`], { cwd: dir }));
  const archive = readFileSync(join(dir, filename)), got = `sha512-${digest('sha512', archive, 'base64')}`;
  if (got !== integrity) throw new Error(`${name}@${version} is ${got}, not ${integrity}`);
  mkdirSync(join(dir, name), { recursive: true });
  execFileSync('tar', ['xzf', join(dir, filename), '-C', join(dir, name), '--strip-components=1']);
}
rmSync('noble', { recursive: true, force: true });
const files = {}, todo = [...entries, ...Object.keys(pins.packages).map((name) => `${name.slice(7)}/LICENSE`)];
for (const file of todo) {
  const importing = /^((?:import|export)\b[^'"\n]*?from |import )(['"])([^'"]+)\2/gm;
  const source = readFileSync(join(dir, '@noble', file), 'utf8').replace(importing, (_, begin, quote, from) => {
    const target = from.startsWith('@noble/') ? from.slice(7) : posix.join(posix.dirname(file), from);
    if (!todo.includes(target)) todo.push(target);
    const path = posix.relative(posix.dirname(file), target);
    return `${begin}${quote}${path.startsWith('.') ? path : `./${path}`}${quote}`;
  }).replace(/^\/\/# sourceMappingURL=.*\n?/gm, '');
  mkdirSync(dirname(join('noble', file)), { recursive: true });
  writeFileSync(join('noble', file), source);
  files[file] = digest('sha256', source, 'hex');
}
rmSync(dir, { recursive: true });
pins.files = Object.fromEntries(Object.entries(files).sort(([a], [b]) => (a < b ? -1 : 1)));
writeFileSync('vendor.json', JSON.stringify(pins, null, 2) + '\n');
console.log(`${Object.keys(files).length} files`);
