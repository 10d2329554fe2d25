package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"creto.dev/fault"
	"creto.dev/node"
	"creto.dev/receipt/verifier"
)

// secondOpinion has the bundle, and the one with a flipped byte, verified by the
// verifier that shares nothing with this program, where there is a node to run it.
func (d *demo) secondOpinion(ctx context.Context, path, bad string) error {
	const op fault.Op = "creto.demo"
	program, err := exec.LookPath("node")
	if err != nil {
		d.say("the second verifier, in JavaScript, did not run: there is no node on the PATH (/console/verify runs it in a browser)")
		return nil
	}
	dir := filepath.Join(d.work, "verifier")
	if err := os.CopyFS(dir, verifier.Files); err != nil {
		return fault.WrapAs(op, fault.Unavailable, err, "%s cannot be written", dir)
	}
	root, err := os.ReadFile(filepath.Join(d.app.dataDir, node.RootFile))
	if err != nil {
		return fault.WrapAs(op, fault.Unavailable, err, "the root's fingerprint cannot be read")
	}
	verify := func(file string) (string, error) {
		c := exec.CommandContext(ctx, program, filepath.Join(dir, "verify.mjs"), file, "--root", strings.TrimSpace(string(root)))
		out, err := c.CombinedOutput()
		if _, refused := errors.AsType[*exec.ExitError](err); err != nil && !refused {
			return "", fault.WrapAs(op, fault.Unavailable, err, "%s cannot be run", program)
		}
		return lastLine(string(out)), err
	}
	refused, err := verify(bad)
	if err == nil {
		return fault.New(op, fault.SecurityViolation, "the second verifier accepts a changed bundle")
	}
	said, err := verify(path)
	if err != nil {
		return fault.New(op, fault.SecurityViolation, "the second verifier, in JavaScript: %s", said)
	}
	_, why, _ := strings.Cut(refused, " FAILED: ")
	d.say("the second verifier, in JavaScript and sharing no code with this one, refuses the flipped byte too (%s), and says: %s", why, said)
	return nil
}
