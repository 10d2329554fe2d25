package cache

// Bytes returns how many bytes the store says that it keeps, and how many it does.
func Bytes(c *Router) (said, kept int64) {
	s := c.store
	s.mu.Lock()
	defer s.mu.Unlock()
	for at := s.order.Front(); at != nil; at = at.Next() {
		kept += at.Value.(*entry).weigh()
	}
	return s.bytes, kept
}

// Alike reports whether the words of two texts allow that they mean the same.
func Alike(a, b string, paraphrases bool) bool {
	x, known := sayingOf(a)
	y, too := sayingOf(b)
	return known && too && agree(x, y, paraphrases) && alike(x, y, paraphrases)
}

// UnderWay returns how many bytes are held of answers that are streamed now.
func UnderWay(c *Router) int64 { return c.under.bytes.Load() }
