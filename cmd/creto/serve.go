package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"creto.dev/fault"
	"creto.dev/internal/logkey"
	"creto.dev/node"
)

// loadConfig reads the configuration and prints its warnings.
func loadConfig(path string) (node.Config, error) {
	cfg, warnings, err := node.Load(path, os.LookupEnv)
	for _, w := range warnings {
		fmt.Fprintln(os.Stderr, "creto: warning: "+w)
	}
	return cfg, err
}

// newLogger returns the process's log, on standard error.
func newLogger(cfg node.LogConfig) *slog.Logger {
	options := &slog.HandlerOptions{Level: cfg.SlogLevel()}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, options))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, options))
}

// served is what serve prints when the node is ready.
type served struct {
	Console string `json:"console"`
	Login   string `json:"login"`
	Listen  string `json:"listen"`
	DataDir string `json:"data_dir"`
	Root    string `json:"root"`
	ReadyMS int64  `json:"ready_ms"`
}

func (a *app) serveCommand() *cobra.Command {
	var listen, config string
	c := &cobra.Command{
		Use:   "serve",
		Short: "Start a node",
		Long: `Start a node. It needs no configuration and writes under one data directory.
When it is ready it prints the console's address and a one-time login.
SIGTERM or Ctrl-C lets what is under way finish, then stops it. Policies that
change are in force within a moment; SIGHUP takes them into force at once.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			started := time.Now()
			cfg, err := loadConfig(config)
			if err != nil {
				return err
			}
			if c.Flags().Changed("listen") {
				cfg.Server.Listen = listen
			}
			n, err := node.Open(c.Context(), node.Options{DataDir: a.dataDir, Version: version, Config: cfg, Log: newLogger(cfg.Log)})
			if err != nil {
				return err
			}
			err = a.announce(c.Context(), n, started)
			if err == nil {
				settled := settle(newLogger(cfg.Log), settleAfter)
				stop := reloadOnHangup(c.Context(), n, newLogger(cfg.Log))
				err = n.Run(c.Context())
				stop()
				settled()
			}
			if closed := n.Close(); err == nil {
				err = closed
			}
			return err
		},
	}
	c.Flags().StringVar(&listen, "listen", node.Default().Server.Listen, "`address` of the one TCP port")
	c.Flags().StringVar(&config, "config", "", "configuration `file` (default "+node.ConfigPath+", if there)")
	return c
}

// reloadOnHangup has each SIGHUP take the policies on disk into force (R-CFG-46).
// stop ends that, and waits.
func reloadOnHangup(ctx context.Context, n *node.Node, log *slog.Logger) (stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-signals:
			}
			if err := n.ReloadPolicies(ctx); err != nil {
				log.LogAttrs(ctx, slog.LevelError, "the policies were not reloaded; those before stay in force", slog.String(logkey.Error, fault.Message(err)))
				continue
			}
			log.LogAttrs(ctx, slog.LevelInfo, "the policies on disk are in force")
		}
	})
	return func() {
		signal.Stop(signals)
		cancel()
		group.Wait()
	}
}

func (a *app) announce(ctx context.Context, n *node.Node, started time.Time) error {
	login, err := n.BootstrapLogin(ctx)
	if err != nil {
		return err
	}
	status, err := n.Status(ctx)
	if err != nil {
		return err
	}
	s := served{Console: status.Console, Login: login, Listen: status.Listen, DataDir: status.DataDir, Root: status.Root.String(), ReadyMS: time.Since(started).Milliseconds()}
	return a.print(s, func(w io.Writer) {
		fmt.Fprintf(w, "creto %s is ready after %d ms\n", version, s.ReadyMS)
		fmt.Fprintf(w, "  console  %s\n", s.Console)
		fmt.Fprintf(w, "  log in   %s   (once, within 15 minutes)\n", s.Login)
		fmt.Fprintf(w, "  data     %s\n", s.DataDir)
		fmt.Fprintf(w, "  root     %s\n", s.Root)
	})
}

func (a *app) configCommand() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Check a configuration, or print the defaults"}
	c.AddCommand(&cobra.Command{
		Use:   "check [FILE]",
		Short: "Report every problem of a configuration file at once",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			path := ""
			if len(args) > 0 {
				path = args[0]
			}
			cfg, err := loadConfig(path)
			if err != nil {
				return err
			}
			return a.print(map[string]bool{"ok": true}, func(w io.Writer) {
				fmt.Fprintf(w, "OK: listens on %s, %d model providers, %d egress hosts\n", cfg.Server.Listen, len(cfg.Inference.Providers), len(cfg.Egress.Hosts))
			})
		},
	}, &cobra.Command{
		Use:   "defaults",
		Short: "Print a configuration file with every key, its default and what it means",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return node.WriteDefaults(a.out) },
	})
	return c
}
