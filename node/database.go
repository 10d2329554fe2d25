package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"creto.dev"
	"creto.dev/consensus"
	"creto.dev/fault"
	"creto.dev/internal/db"
)

// openDatabase opens SQLite in the data directory, or the PostgreSQL database that
// the configuration names, for this node alone.
func (n *Node) openDatabase(ctx context.Context) error {
	const op fault.Op = "node.openDatabase"
	location := n.options.Config.Database.URL.Reveal()
	if location == "" {
		var err error
		if n.db, err = db.Open(ctx, filepath.Join(n.options.DataDir, "creto.db")); err != nil {
			return fault.Wrap(op, err)
		}
		n.onClose(n.db.Close)
		return nil
	}
	d, hold, err := db.OpenHeld(ctx, location, db.Holder{Name: nodeName(), Machine: lockedFile(n.lock), Log: n.options.Log})
	if err != nil {
		return fault.Wrap(op, err)
	}
	n.db, n.hold, n.background = d, hold, append(n.background, hold.Run)
	n.onClose(hold.Close)
	n.onClose(d.Close)
	return nil
}

// lockedFile names a locked file so that nothing else has its name while this
// system runs: whoever has its lock knows that the holder before is dead. It is
// "" where that cannot be known.
func lockedFile(f *os.File) string {
	var stat unix.Stat_t
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || unix.Fstat(int(f.Fd()), &stat) != nil {
		return ""
	}
	return fmt.Sprintf("%s/%d/%d", strings.TrimSpace(string(boot)), stat.Dev, stat.Ino)
}

// heldClock stamps nothing while the node may have lost its database to another.
// Everything that acts takes a stamp first, so the node does nothing then. It is
// around every other clock: none below it may stand in for it.
type heldClock struct {
	consensus.Clock
	hold *db.Hold
}

// Now implements consensus.Clock.
func (c heldClock) Now(ctx context.Context) (creto.Timestamp, error) {
	if err := c.hold.Check(ctx); err != nil {
		return creto.Timestamp{}, err
	}
	return c.Clock.Now(ctx)
}

// Register implements consensus.Clock.
func (c heldClock) Register(ctx context.Context, id consensus.EventID) (creto.Timestamp, error) {
	if err := c.hold.Check(ctx); err != nil {
		return creto.Timestamp{}, err
	}
	return c.Clock.Register(ctx, id)
}
