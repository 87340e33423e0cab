package mesh

func withDelegates(sorted []*VirtualService, all *table[VirtualService]) []*VirtualService {
	out := sorted[:0]
	for _, vs := range sorted {
		if len(vs.Spec.Hosts) > 0 {
			out = append(out, vs)
		}
	}
	return out
}
