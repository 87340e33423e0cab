package envoy

// gatewaySet is what a gateway needs.
func (w *World) gatewaySet(p Proxy) *Set {
	return newSet("gateway/"+p.Namespace+"/"+p.Pod, w.snap.Version(), nil, nil)
}
