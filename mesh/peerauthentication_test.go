package mesh

import (
	"slices"
	"testing"

	security "istio.io/api/security/v1beta1"
	selector "istio.io/api/type/v1beta1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func setSelector(r *networkingv1.DestinationRule) {
	r.Spec.WorkloadSelector = &selector.WorkloadSelector{MatchLabels: map[string]string{"app": "client"}}
}

const (
	unset      = security.PeerAuthentication_MutualTLS_UNSET
	disable    = security.PeerAuthentication_MutualTLS_DISABLE
	permissive = security.PeerAuthentication_MutualTLS_PERMISSIVE
	strict     = security.PeerAuthentication_MutualTLS_STRICT
)

type mode = security.PeerAuthentication_MutualTLS_Mode

func policy(ns, name, app string, created int64, m mode, ports map[uint32]mode) *securityv1.PeerAuthentication {
	o := &securityv1.PeerAuthentication{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, CreationTimestamp: metav1.Unix(created, 0)}}
	if app != "" {
		o.Spec.Selector = &selector.WorkloadSelector{MatchLabels: map[string]string{"app": app}}
	}
	if m != unset {
		o.Spec.Mtls = &security.PeerAuthentication_MutualTLS{Mode: m}
	}
	for p, m := range ports {
		if o.Spec.PortLevelMtls == nil {
			o.Spec.PortLevelMtls = map[uint32]*security.PeerAuthentication_MutualTLS{}
		}
		o.Spec.PortLevelMtls[p] = &security.PeerAuthentication_MutualTLS{Mode: m}
	}
	return o
}

// Istio, PeerAuthentication: the mesh's policy is the one without selector in the root namespace, the namespace's the one without selector in it; a policy with a
// selector is for matching workloads, and only it may name ports; the narrowest wins; UNSET inherits; nothing at all means PERMISSIVE.
// Of two policies for the same scope the older counts.
func TestTheNarrowestPeerAuthenticationWins(t *testing.T) {
	mesh := policy("istio-system", "default", "", 1, strict, nil)
	ns := policy("default", "default", "", 2, permissive, nil)
	for name, c := range map[string]struct {
		policies []*securityv1.PeerAuthentication
		port     uint16
		want     MTLSMode
		because  string
	}{
		"nothing":                       {nil, 9080, MTLSPermissive, ""},
		"mesh":                          {[]*securityv1.PeerAuthentication{mesh}, 9080, MTLSStrict, "istio-system/default"},
		"namespace over mesh":           {[]*securityv1.PeerAuthentication{mesh, ns}, 9080, MTLSPermissive, "default/default"},
		"another namespace":             {[]*securityv1.PeerAuthentication{mesh, policy("other", "default", "", 1, disable, nil)}, 9080, MTLSStrict, "istio-system/default"},
		"unset namespace inherits":      {[]*securityv1.PeerAuthentication{mesh, policy("default", "default", "", 1, unset, nil)}, 9080, MTLSStrict, "istio-system/default"},
		"workload over namespace":       {[]*securityv1.PeerAuthentication{mesh, ns, policy("default", "w", "reviews", 3, disable, nil)}, 9080, MTLSDisable, "default/w"},
		"another workload":              {[]*securityv1.PeerAuthentication{mesh, policy("default", "w", "ratings", 3, disable, nil)}, 9080, MTLSStrict, "istio-system/default"},
		"a selector in the root":        {[]*securityv1.PeerAuthentication{policy("istio-system", "w", "reviews", 3, strict, nil)}, 9080, MTLSPermissive, ""},
		"unset workload inherits":       {[]*securityv1.PeerAuthentication{mesh, policy("default", "w", "reviews", 3, unset, nil)}, 9080, MTLSStrict, "istio-system/default"},
		"port over workload":            {[]*securityv1.PeerAuthentication{policy("default", "w", "reviews", 3, strict, map[uint32]mode{9080: disable})}, 9080, MTLSDisable, "default/w"},
		"another port":                  {[]*securityv1.PeerAuthentication{policy("default", "w", "reviews", 3, strict, map[uint32]mode{9090: disable})}, 9080, MTLSStrict, "default/w"},
		"unset port inherits":           {[]*securityv1.PeerAuthentication{mesh, policy("default", "w", "reviews", 3, unset, map[uint32]mode{9080: unset})}, 9080, MTLSStrict, "istio-system/default"},
		"port 0 is the workload's mode": {[]*securityv1.PeerAuthentication{policy("default", "w", "reviews", 3, strict, map[uint32]mode{9080: disable})}, 0, MTLSStrict, "default/w"},
		"the older of two":              {[]*securityv1.PeerAuthentication{policy("default", "b", "", 1, strict, nil), policy("default", "a", "", 2, disable, nil)}, 9080, MTLSStrict, "default/b"},
		"the older of two workloads":    {[]*securityv1.PeerAuthentication{policy("default", "b", "reviews", 1, strict, nil), policy("default", "a", "reviews", 2, disable, nil)}, 9080, MTLSStrict, "default/b"},
	} {
		s := NewStore(Options{})
		s.Apply(reviews()...)
		for _, p := range c.policies {
			s.Apply(Object{Object: p})
		}
		n := s.Snapshot()
		got, refs := n.ServerMTLS(n.Workload("default", "reviews-1"), c.port)
		because := ""
		for _, r := range refs {
			because += r.Namespace + "/" + r.Name
		}
		if got != c.want || because != c.because {
			t.Errorf("%s: mode %v because of %q, want %v because of %q", name, got, because, c.want, c.because)
		}
	}
}

func TestPortsOfPortLevelMTLSAreListed(t *testing.T) {
	s := NewStore(Options{})
	s.Apply(append(reviews(), Object{Object: policy("default", "w", "reviews", 1, strict, map[uint32]mode{9090: disable, 3306: strict})})...)
	n := s.Snapshot()
	if got := n.MTLSPorts(n.Workload("default", "reviews-1")); !slices.Equal(got, []uint16{3306, 9090}) {
		t.Errorf("got %v", got)
	}
}
