package nodeagent

import (
	"net"
	"testing"
)

// TestAPodWithTwoAddressesIsRedirectedOnBoth: an app that finds IPv6 free would talk around the mesh there.
func TestAPodWithTwoAddressesIsRedirectedOnBoth(t *testing.T) {
	c := open(t)
	if !c.DualStack {
		t.Skip("this node's pods have one address: `cluster up --dual-stack` gives them two")
	}
	ns := c.namespace()
	targets := []string{c.target, listenOutside(t, net.JoinHostPort(nodeIPv6(t), "0"))}
	early := c.start(c.app(ns, "early", targets...))
	c.sees(early, outside)
	c.install(nil)
	c.sees(early, nothing)
	late := c.start(c.app(ns, "late", targets...))
	c.sees(late, nothing)
	c.never(late)
}

// nodeIPv6 is the node's address; this process is in the node's network.
func nodeIPv6(t *testing.T) string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() == nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	t.Fatalf("the node has no IPv6 address: %v", all)
	return ""
}
