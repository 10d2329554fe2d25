package localconsensus

import (
	"context"
	"database/sql"

	"modernc.org/sqlite"

	"creto.dev/fault"
)

// CheckDurable refuses a PostgreSQL server that has standbys of which one may be
// behind when it takes over: the mark and the term that it has lost would be given
// again. Standbys must be among synchronous_standby_names, and commits must wait
// for them; package db sees to the rest. It asks once, at the start: a standby that
// is added later must be synchronous too. SQLite has none.
//
// Errors: FailedPrecondition (Permanent), which says what to set; those of
// Clock.Ping.
func CheckDurable(ctx context.Context, d *sql.DB) error {
	const op fault.Op = "localconsensus.CheckDurable"
	if _, ok := d.Driver().(*sqlite.Driver); ok {
		return nil
	}
	var commit string
	var hidden, behind, all int
	// Who may not see the state of others' sessions sees NULL. A base backup is
	// no standby yet.
	err := d.QueryRowContext(ctx, `SELECT current_setting('synchronous_commit'),
		count(*) FILTER (WHERE sync_state IS NULL),
		count(*) FILTER (WHERE state <> 'backup' AND sync_state NOT IN ('sync', 'quorum', 'potential')),
		count(*) FILTER (WHERE state <> 'backup')
		FROM pg_stat_replication`).Scan(&commit, &hidden, &behind, &all)
	switch {
	case err != nil:
		return classify(op, err)
	case hidden > 0:
		return fault.New(op, fault.FailedPrecondition, "the PostgreSQL server has standbys, and whether they are synchronous is not shown to this user: GRANT pg_read_all_stats to it")
	case behind > 0:
		return fault.New(op, fault.FailedPrecondition, "the PostgreSQL server has %d standbys that are not synchronous: after a failover the clock would go backwards; name them in synchronous_standby_names, or use etcd for time", behind)
	case all > 0 && (commit == "local" || commit == "off"):
		return fault.New(op, fault.FailedPrecondition, "commits do not wait for the PostgreSQL server's standbys (synchronous_commit = %s): after a failover the clock would go backwards; set it to on", commit)
	}
	return nil
}
