package consensus

import "time"

// SetWall has f read the time from wall.
func (f *Fallback) SetWall(wall func() time.Time) { f.wall = wall }
