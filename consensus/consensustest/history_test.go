package consensustest_test

import (
	"testing"

	"github.com/anishathalye/porcupine"

	"creto.dev"
	"creto.dev/consensus/consensustest"
)

func TestCheckHistory(t *testing.T) {
	at := func(client int, began, ended int64, logical uint64, physical int64) consensustest.Call {
		return consensustest.Call{Client: client, Began: began, Ended: ended, Stamp: creto.Timestamp{Logical: logical, Physical: physical, Source: creto.SourceConsensus}}
	}
	local := at(0, 0, 1, 1, 1)
	local.Stamp.Source = creto.SourceLocal
	for name, c := range map[string]struct {
		calls []consensustest.Call
		want  porcupine.CheckResult
	}{
		"nothing":                             {nil, porcupine.Ok},
		"in order":                            {[]consensustest.Call{at(0, 0, 1, 5, 5), at(1, 2, 3, 6, 5), at(0, 4, 5, 9, 7)}, porcupine.Ok},
		"at once, either way round":           {[]consensustest.Call{at(0, 0, 9, 6, 5), at(1, 2, 3, 5, 5)}, porcupine.Ok},
		"a stamp after a greater one":         {[]consensustest.Call{at(0, 0, 1, 6, 5), at(1, 2, 3, 5, 5)}, porcupine.Illegal},
		"one stamp twice":                     {[]consensustest.Call{at(0, 0, 9, 6, 5), at(1, 0, 9, 6, 5)}, porcupine.Illegal},
		"time goes backwards":                 {[]consensustest.Call{at(0, 0, 1, 5, 5), at(1, 2, 3, 6, 4)}, porcupine.Illegal},
		"time goes backwards, though at once": {[]consensustest.Call{at(0, 0, 9, 5, 5), at(1, 2, 3, 6, 4)}, porcupine.Illegal},
		"a local stamp":                       {[]consensustest.Call{local}, porcupine.Illegal},
	} {
		if got := consensustest.CheckHistory(c.calls); got != c.want {
			t.Errorf("%s: CheckHistory = %v, want %v", name, got, c.want)
		}
	}
	var many []consensustest.Call
	for i := range int64(20_000) {
		many = append(many, at(int(i%10), i, i+10, uint64(i+1), i))
	}
	if got := consensustest.CheckHistory(many); got != porcupine.Ok {
		t.Errorf("20,000 calls: %v", got)
	}
}
