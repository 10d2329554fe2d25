package gate

// SetMaxCallers bounds the callers that g remembers.
func (g *Gate) SetMaxCallers(n int) { g.maxCallers = n }

// Remembered counts the callers that g remembers.
func (g *Gate) Remembered() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.callers)
}
