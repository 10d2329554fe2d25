package cache

// Bytes returns how many bytes the store says that it keeps, and how many it does.
func Bytes(c *Router) (said, kept int64) {
	s := c.store
	s.mu.Lock()
	defer s.mu.Unlock()
	for at := s.order.Front(); at != nil; at = at.Next() {
		e := at.Value.(*entry)
		kept += entryBytes
		for _, p := range e.pieces {
			kept += int64(len(p)) + pieceBytes
		}
	}
	return s.bytes, kept
}
