package mesh

// BuildEndpoints makes a snapshot of what does not wait for the debounce, as [Store.Updates] does.
func (s *Store) BuildEndpoints() *Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.build(false)
}
