package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"creto.dev"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/node"
	"creto.dev/sandbox"
	"creto.dev/sandbox/gvisor"
	"creto.dev/sandbox/namespaces"
)

func (a *app) runCommand() *cobra.Command {
	var config string
	var write []string
	c := &cobra.Command{
		Use:                   "run [flags] AGENT -- COMMAND [ARG...]",
		DisableFlagsInUseLine: true,
		Short:                 "Run a program as an agent",
		Long: `Run an unmodified program as an agent, in a sandbox whose only way out is the
gateway: OPENAI_BASE_URL, ANTHROPIC_BASE_URL and HTTP_PROXY point there. The
program sees this machine's /usr, /bin, /sbin and /lib* and the working
directory, whose changes are discarded; --write keeps those below a directory.
Its output and exit code are passed on; a program that is not there is 127.

Without a running node, one is started for the lifetime of the run.`,
		Args: func(c *cobra.Command, args []string) error {
			if dash := c.ArgsLenAtDash(); dash != 1 || len(args) < 2 {
				return errors.New("name an agent and, behind --, a command")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			cfg, err := loadConfig(config)
			if err != nil {
				return err
			}
			return a.run(c.Context(), cfg, args[0], args[1:], write)
		},
	}
	c.Flags().StringArrayVar(&write, "write", nil, "`DIR` whose changes are kept (repeatable)")
	c.Flags().StringVar(&config, "config", "", "configuration `file` (default "+node.ConfigPath+", if there)")
	return c
}

func (a *app) run(ctx context.Context, cfg node.Config, agent string, command, write []string) error {
	n, err := a.client()
	if err != nil {
		return err
	}
	status, stop, err := a.reach(ctx, n, cfg)
	if err != nil {
		return a.unreachable(err)
	}
	defer stop()
	backend, err := chooseBackend(ctx, cfg.Runtime)
	if err != nil {
		return err
	}
	engine, err := backend.Version(ctx)
	if err != nil {
		return err
	}
	dir, err := os.Getwd()
	if err != nil {
		return fault.WrapAs("creto.run", fault.InvalidArgument, err, "the working directory is gone; change to another")
	}
	id := creto.ID{TrustDomain: status.TrustDomain, Tenant: status.Tenant, Kind: creto.KindAgent, Name: agent}
	spec := sandbox.Spec{
		ID: "run", Agent: id, Command: command, Dir: dir, Write: write, DataDir: status.DataDir, GatewayDir: status.DataDir,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	}
	// What can be refused is refused before anything is recorded.
	if err := spec.Validate(); err != nil {
		return err
	}
	run, err := n.StartRun(ctx, client.NewRun{
		Agent: agent, Isolation: string(backend.Isolation()), Engine: engine, Command: command, Dir: dir, Write: write, PID: os.Getpid(),
	})
	if err != nil {
		return a.unreachable(err)
	}
	spec.ID, spec.GatewayDir = run.ID, run.GatewayDir
	return supervise(ctx, n, backend, spec)
}

// exitNotFound is the code of a command that is not in the sandbox, as of a
// shell.
const exitNotFound = 127

// reportTimeout bounds the report of a run's start or end, the patience with a
// node that is just being restarted included.
const reportTimeout = 15 * time.Second

// supervise runs the sandbox and reports what became of it. It outlives the
// node, and finds it again after a restart.
func supervise(ctx context.Context, n *client.Client, backend sandbox.Backend, spec sandbox.Spec) error {
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	if isTerminal(os.Stdin) {
		// The terminal sends its interrupt to the program itself.
		signal.Ignore(os.Interrupt)
	}
	spec.Started = func(s sandbox.Started) {
		err := report(ctx, func(ctx context.Context) error {
			return n.RunStarted(ctx, spec.ID, client.RunStarted{StartNS: s.After.Nanoseconds(), Config: s.Config, Unenforced: s.Unenforced})
		})
		if err != nil {
			fmt.Fprintln(os.Stderr, "creto: the start is not recorded: "+explain(err))
			cancel() // what cannot be recorded does not run
		}
	}
	result, err := backend.Run(running, spec)
	end := client.RunEnded{ExitCode: result.ExitCode}
	if err != nil {
		end.Error = fault.Message(err)
	}
	if err := report(ctx, func(ctx context.Context) error { return n.EndRun(ctx, spec.ID, end) }); err != nil {
		fmt.Fprintln(os.Stderr, "creto: the end of the run is not recorded: "+explain(err))
	}
	signaled := ctx.Err() != nil && result.ExitCode >= 0 // and the signal was passed on
	switch {
	case err == nil, signaled:
		if result.ExitCode == 0 {
			return nil
		}
		return exitError(result.ExitCode)
	case result.ExitCode > 0:
		fmt.Fprintln(os.Stderr, "creto: "+explain(err))
		return exitError(result.ExitCode)
	case fault.CodeOf(err) == fault.InvalidArgument:
		fmt.Fprintln(os.Stderr, "creto: "+explain(err))
		return exitError(exitNotFound)
	}
	return err // the command never ran, or not to its end
}

// report tells the node, again and again while that does not answer, also when
// the run was told to end.
func report(ctx context.Context, send func(context.Context) error) error {
	const pause = 250 * time.Millisecond
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), reportTimeout)
	defer stop()
	for {
		err := send(ctx)
		if fault.CodeOf(err).Kind() != fault.Unavailable {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && f.Name() != os.DevNull
}

// backends are the sandboxes that are built, the strongest first.
func backends(cfg node.RuntimeConfig) []sandbox.Backend {
	return []sandbox.Backend{gvisor.New(gvisor.Config{Path: cfg.RunscPath}), namespaces.New()}
}

// chooseBackend returns the configured sandbox, or the strongest that works.
func chooseBackend(ctx context.Context, cfg node.RuntimeConfig) (sandbox.Backend, error) {
	var reasons []string
	for _, b := range backends(cfg) {
		if cfg.Backend != node.BackendAuto && cfg.Backend != string(b.Isolation()) {
			continue
		}
		err := b.Available(ctx)
		if err == nil {
			return b, nil
		}
		if ctx.Err() != nil {
			return nil, fault.Wrap("creto.chooseBackend", ctx.Err())
		}
		reasons = append(reasons, string(b.Isolation())+": "+fault.Message(err))
	}
	return nil, fault.New("creto.chooseBackend", fault.Unavailable, "no sandbox works here:\n  %s", strings.Join(reasons, "\n  "))
}

// reachTimeout bounds the wait for a node that has its data directory and does
// not answer yet, or is about to leave it.
const reachTimeout = 10 * time.Second

// reach finds the node, or starts one here that stop ends.
func (a *app) reach(ctx context.Context, n *client.Client, cfg node.Config) (status client.Status, stop func(), err error) {
	nothing := func() {}
	began := time.Now()
	for {
		if status, err = n.Status(ctx); !isUnreachable(err) || os.Getenv(addrEnv) != "" || errors.Is(err, os.ErrPermission) {
			return status, nothing, err
		}
		if stop, err = a.ephemeral(ctx, cfg); err == nil {
			status, err = n.Status(ctx)
			return status, stop, err
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) || time.Since(began) > reachTimeout {
			return status, nothing, err
		}
		// Another creto was faster.
		if err := pause(ctx); err != nil {
			return status, nothing, err
		}
	}
}

// ephemeral starts a node inside this process for the lifetime of a run, and of
// others that find it meanwhile.
func (a *app) ephemeral(ctx context.Context, cfg node.Config) (stop func(), err error) {
	cfg.Server.Listen = "localhost:0"
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: max(slog.LevelWarn, cfg.Log.SlogLevel())}))
	n, err := node.Open(ctx, node.Options{DataDir: a.dataDir, Version: version, Config: cfg, Log: log})
	if err != nil {
		return nil, err
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	go func() { done <- n.Run(running) }()
	status, err := n.Status(ctx)
	if err != nil {
		cancel()
		return nil, errors.Join(err, <-done, n.Close())
	}
	fmt.Fprintf(os.Stderr, "creto: no node is running; started one for this run (console %s, data %s)\n", status.Console, a.dataDir)
	return func() {
		// Their programs would be cut off.
		if err := n.Idle(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "creto: other runs lose their node; go on with: "+a.hint("serve"))
		}
		cancel()
		if err := errors.Join(<-done, n.Close()); err != nil {
			fmt.Fprintln(os.Stderr, "creto: "+explain(err))
		}
	}, nil
}
