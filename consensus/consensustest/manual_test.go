package consensustest_test

import (
	"testing"

	"creto.dev/consensus"
	"creto.dev/consensus/consensustest"
)

func TestManual(t *testing.T) {
	var m consensustest.Manual
	consensustest.Run(t, func(*testing.T) consensus.Clock { return &m })
}
