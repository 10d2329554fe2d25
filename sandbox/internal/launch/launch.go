// Package launch is what the sandbox backends share on the host: the layout of
// the file system, stdio, control groups, and the conversation with the first
// process from its start to its end.
package launch

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/sandbox"
	"creto.dev/sandbox/guest"
)

// defaultGrace is the time between SIGTERM and SIGKILL.
const defaultGrace = 5 * time.Second

// drainTimeout bounds the wait for output behind the end of every process.
const drainTimeout = 2 * time.Second

// Job is one run, from New to Close.
type Job struct {
	// Spec is resolved.
	Spec sandbox.Spec
	// Guest is what the first process is told.
	Guest guest.Config

	op    fault.Op
	began time.Time
	group *group
}

// now is this package's clock. It measures durations and sets deadlines of
// pipes; nothing that is recorded comes from it.
func now() time.Time { return time.Now() }

// New validates spec and lays the sandbox out. A backend's Run begins with it,
// and so does the measured time.
//
// Errors: InvalidArgument (Permanent) as sandbox.Spec.Validate.
func New(op fault.Op, spec sandbox.Spec, mode guest.Mode) (*Job, error) {
	began := now()
	spec, err := spec.Resolve()
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	if spec.Executable == "" {
		// Not os.Executable: the file may have been replaced meanwhile.
		spec.Executable = "/proc/self/exe"
	}
	terminal := isTerminal(spec.Stdin)
	return &Job{
		Spec: spec, op: op, began: began,
		Guest: guest.Config{
			Mode: mode, Hostname: spec.ID, Command: spec.Command, Env: environment(spec, terminal), Dir: spec.Dir,
			Terminal: terminal, Patience: spec.Patience,
			OpenFiles: uint64(spec.Limits.OpenFiles), Processes: uint64(spec.Limits.Processes),
			Tree: tree(spec),
		},
	}, nil
}

// outcome is what the first process and the clock said.
type outcome struct {
	started bool
	exited  *int
	missing string
	failed  string
}

// Run starts cmd, which must be or become the first process, with stdio, the
// pipes of package guest as its first extra files, and the limits of a control
// group that leaves overhead processes and bytes for the engine. It sends
// messages, each an encoded guest.Config, follows the run to its end and returns how it went. digest is that
// of the exact configuration.
//
// Errors: as sandbox.Backend.Run.
func (j *Job) Run(ctx context.Context, cmd *exec.Cmd, messages [][]byte, overhead Overhead, digest creto.Digest) (sandbox.Result, error) {
	result := sandbox.Result{Started: sandbox.Started{Config: digest}, ExitCode: -1}
	if err := ctx.Err(); err != nil {
		return result, fault.Wrap(j.op, err)
	}
	cancel := func() {}
	if j.Spec.Limits.WallClock > 0 {
		ctx, cancel = context.WithTimeout(ctx, j.Spec.Limits.WallClock)
	}
	defer cancel()

	j.group = newGroup(j.Spec.Limits, overhead)
	defer j.group.close()
	result.Unenforced = j.group.unenforced

	streams, err := openStreams(j.Spec, j.Guest.Mode == guest.ModeGVisor)
	if err != nil {
		return result, fault.WrapAs(j.op, fault.SpawnFailed, err, "open the streams of the sandbox")
	}
	defer streams.close()
	control, controlIn, err := os.Pipe()
	if err != nil {
		return result, fault.WrapAs(j.op, fault.SpawnFailed, err, "open the sandbox's control pipe")
	}
	defer control.Close()
	defer controlIn.Close()
	statusOut, status, err := os.Pipe()
	if err != nil {
		return result, fault.WrapAs(j.op, fault.SpawnFailed, err, "open the sandbox's status pipe")
	}
	defer statusOut.Close()
	defer status.Close()

	cmd.Stdin, cmd.Stdout, cmd.Stderr = streams.stdin, streams.stdout, streams.stderr
	cmd.ExtraFiles = append([]*os.File{control, status}, cmd.ExtraFiles...)
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL

	ended, err := startLocked(cmd)
	if err != nil {
		code := fault.SpawnFailed
		if refused(err) {
			code = fault.Unavailable
		}
		return result, fault.WrapAs(j.op, code, err, "start the sandbox's first process %q: %s", cmd.Path, Hint(err))
	}
	// From here on the process is waited for on every path.
	control.Close()
	status.Close()
	streams.started()
	result.PID = cmd.Process.Pid
	// Written side by side: to join takes as long as to build the tree. A dead
	// process says so by its end, so that errors of the pipe say nothing new.
	_, _ = controlIn.Write(messages[0])
	groupErr := j.group.join(cmd.Process.Pid)
	if groupErr == nil {
		for _, message := range messages[1:] {
			_, _ = controlIn.Write(append([]byte{guest.Go}, message...))
		}
		_, _ = controlIn.Write([]byte{guest.Go})
	} else {
		_ = cmd.Process.Kill()
	}

	reports := make(chan outcome, 1)
	go func() {
		reports <- follow(statusOut, func() {
			result.After = time.Since(j.began)
			if j.Spec.Started != nil {
				j.Spec.Started(result.Started)
			}
		})
	}()
	waitErr := j.wait(ctx, cmd, controlIn, ended)
	j.group.kill()
	_ = statusOut.SetReadDeadline(now().Add(drainTimeout))
	out := <-reports
	result.Duration = time.Since(j.began)
	streams.drain()
	if groupErr != nil {
		return result, fault.WrapAs(j.op, fault.SpawnFailed, groupErr, "move the sandbox into its control group")
	}
	return j.judge(ctx, result, out, waitErr)
}

// judge turns what happened into Run's answer.
func (j *Job) judge(ctx context.Context, result sandbox.Result, out outcome, waitErr error) (sandbox.Result, error) {
	switch {
	case out.missing != "":
		return result, fault.New(j.op, fault.InvalidArgument, "%s", out.missing)
	case out.failed != "":
		return result, fault.New(j.op, fault.SpawnFailed, "build the sandbox: %s", out.failed)
	case out.exited != nil:
		result.ExitCode = *out.exited
	case out.started:
		// Killed: by us, by the kernel for its memory, or from outside.
		result.ExitCode = 128 + int(syscall.SIGKILL)
	case ctx.Err() == nil:
		return result, fault.WrapAs(j.op, fault.SpawnFailed, waitErr, "the sandbox's first process ended before the command started (%v)", waitErr)
	}
	if err := ctx.Err(); err != nil {
		return result, fault.Wrap(j.op, err)
	}
	return result, nil
}

// startLocked starts cmd and waits for it on one operating system thread, for
// the parent whose death ends the child is the thread that started it
// (prctl(2), PR_SET_PDEATHSIG).
func startLocked(cmd *exec.Cmd) (<-chan error, error) {
	started, ended := make(chan error), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	return ended, <-started
}

// wait returns when the first process ended, which it makes happen when ctx
// ends.
func (j *Job) wait(ctx context.Context, cmd *exec.Cmd, control io.Writer, ended <-chan error) error {
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	_, _ = control.Write([]byte{byte(syscall.SIGTERM)})
	grace := j.Spec.Grace
	if grace == 0 {
		grace = defaultGrace
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case err := <-ended:
		return err
	case <-timer.C:
	}
	_ = cmd.Process.Kill()
	return <-ended
}

// follow reads the first process's reports to their end.
func follow(r io.Reader, started func()) outcome {
	var out outcome
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		var status guest.Status
		if json.Unmarshal(lines.Bytes(), &status) != nil {
			continue
		}
		switch {
		case status.Started:
			out.started = true
			started()
		case status.Exited != nil:
			out.exited = status.Exited
		case status.Missing != "":
			out.missing = status.Missing
		case status.Failed != "":
			out.failed = status.Failed
		}
	}
	return out
}

// Hint says what to do about an error of clone(2) or execve(2).
func Hint(err error) string {
	switch {
	case refused(err):
		return "the kernel refuses new namespaces; as root: sysctl -w user.max_user_namespaces=15000 kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0, or in a container: allow unshare and mount"
	case errors.Is(err, syscall.ENOENT):
		return "no such file"
	}
	return "the kernel refused"
}

// refused reports whether the kernel does not let this process have namespaces.
func refused(err error) bool {
	return errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EUSERS)
}

// environment returns the command's whole environment.
func environment(spec sandbox.Spec, terminal bool) []string {
	base := "http://" + guest.Addr
	env := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + guest.HomePath, "TMPDIR=/tmp", "LANG=C.UTF-8", "PWD=" + spec.Dir,
		"OPENAI_BASE_URL=" + base + "/v1", "OPENAI_API_BASE=" + base + "/v1", "OPENAI_API_KEY=" + placeholderKey,
		"ANTHROPIC_BASE_URL=" + base, "ANTHROPIC_API_KEY=" + placeholderKey,
		"HTTP_PROXY=" + base, "HTTPS_PROXY=" + base, "http_proxy=" + base, "https_proxy=" + base,
		"NO_PROXY=", "no_proxy=",
		"CRETO_SANDBOX=" + spec.ID,
	}
	if terminal {
		if term := os.Getenv("TERM"); term != "" {
			env = append(env, "TERM="+term)
		}
	}
	for _, entry := range spec.Env {
		name, _, _ := strings.Cut(entry, "=")
		replaced := false
		for i, old := range env {
			if strings.HasPrefix(old, name+"=") {
				env[i], replaced = entry, true
			}
		}
		if !replaced {
			env = append(env, entry)
		}
	}
	return env
}

// placeholderKey stands where vendors' libraries insist on a key. The gateway
// adds the real one on the way out.
const placeholderKey = "creto-sandbox"

// Digest returns the digest of a configuration's encoding.
func Digest(parts ...[]byte) creto.Digest {
	var all []byte
	for _, part := range parts {
		all = append(fmt.Appendf(all, "%d:", len(part)), part...)
	}
	return creto.DigestOf(all)
}
