package mesh

import (
	"slices"
	"testing"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func rule(ns, name, host string, created int64, subsets ...string) *networkingv1.DestinationRule {
	o := &networkingv1.DestinationRule{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, CreationTimestamp: metav1.Unix(created, 0)}}
	o.Spec.Host = host
	for _, s := range subsets {
		o.Spec.Subsets = append(o.Spec.Subsets, &networking.Subset{Name: s})
	}
	return o
}

func ruleStore(in ...*networkingv1.DestinationRule) *Store {
	s := NewStore(Options{})
	s.Apply(objects(&corev1.Service{ObjectMeta: meta("server", "svc"), Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Port: 80}}}})...)
	for _, r := range in {
		s.Apply(Object{Object: r})
	}
	return s
}

const svcHost = "svc.server.svc.cluster.local"

func lookup(t *testing.T, s *Store, client string) string {
	t.Helper()
	n := s.Snapshot()
	r := n.DestinationRule(client, n.Service(client, svcHost))
	if r == nil {
		return ""
	}
	return r.Namespace + "/" + r.Name
}

// Istio, "DestinationRule": the rule is looked for in the client's namespace, then in the service's, then in the root namespace; the first found is used alone.
func TestTheClientsDestinationRuleComesBeforeTheServicesAndTheRoots(t *testing.T) {
	client, server, root := rule("client", "r", svcHost, 3), rule("server", "r", "svc", 2), rule("istio-system", "r", "*.local", 1)
	for _, c := range []struct {
		rules []*networkingv1.DestinationRule
		from  string
		want  string
	}{
		{[]*networkingv1.DestinationRule{client, server, root}, "client", "client/r"},
		{[]*networkingv1.DestinationRule{client, server, root}, "other", "server/r"},
		{[]*networkingv1.DestinationRule{client, root}, "other", "istio-system/r"},
		{[]*networkingv1.DestinationRule{client, server, root}, "istio-system", "server/r"},
		{[]*networkingv1.DestinationRule{client}, "other", ""},
	} {
		if got := lookup(t, ruleStore(c.rules...), c.from); got != c.want {
			t.Errorf("from %s: %q, want %q", c.from, got, c.want)
		}
	}
}

func TestTheMostSpecificDestinationRuleOfANamespaceWins(t *testing.T) {
	s := ruleStore(rule("client", "all", "*", 1), rule("client", "local", "*.local", 2), rule("client", "ns", "*.server.svc.cluster.local", 3))
	if got := lookup(t, s, "client"); got != "client/ns" {
		t.Errorf("got %s", got)
	}
	s.Apply(Object{Object: rule("client", "name", svcHost, 4)})
	if got := lookup(t, s, "client"); got != "client/name" {
		t.Errorf("got %s", got)
	}
}

func TestPrivateDestinationRulesAreNotForOthers(t *testing.T) {
	private := rule("server", "r", "svc", 1)
	private.Spec.ExportTo = []string{"."}
	s := ruleStore(private)
	if got := lookup(t, s, "server"); got != "server/r" {
		t.Errorf("its own namespace: %q", got)
	}
	if got := lookup(t, s, "client"); got != "" {
		t.Errorf("another namespace: %q", got)
	}
	// a rule of the root namespace is a general one, unless it is private: then it is meant for the gateways there
	root := rule("istio-system", "mine", svcHost, 1)
	root.Spec.ExportTo = []string{"."}
	if got := lookup(t, ruleStore(root, rule("server", "r", "svc", 2)), "istio-system"); got != "istio-system/mine" {
		t.Errorf("the root namespace: %q", got)
	}
}

// Istio, "Multiple destination rules for one host": subsets are added up, the first top-level policy is kept.
func TestDestinationRulesForOneHostAreMerged(t *testing.T) {
	young, old := rule("server", "young", "svc", 200, "v1", "v2"), rule("server", "old", svcHost, 100, "v1")
	old.Spec.Subsets[0].Labels = map[string]string{"from": "old"}
	young.Spec.TrafficPolicy = &networking.TrafficPolicy{LoadBalancer: &networking.LoadBalancerSettings{}}
	s := ruleStore(young, old)
	n := s.Snapshot()
	r := n.DestinationRule("client", n.Service("client", svcHost))
	var subsets []string
	for _, sub := range r.Spec.Subsets {
		subsets = append(subsets, sub.Name+sub.Labels["from"])
	}
	if r.Name != "old" || !slices.Equal(subsets, []string{"v1old", "v2"}) || r.Spec.TrafficPolicy == nil || len(r.Merged) != 1 || r.Merged[0].Name != "young" {
		t.Errorf("got %s with %v, policy %v, merged %v", r.Ref, subsets, r.Spec.TrafficPolicy, r.Merged)
	}
	s.Apply(Object{Object: rule("server", "other", "other", 1)})
	n = s.Snapshot()
	if again := n.DestinationRule("client", n.Service("client", svcHost)); again != r {
		t.Error("the merged rule was made anew although none of its parts changed")
	}
}

func TestAWorkloadSelectorIsReportedNotApplied(t *testing.T) {
	r := rule("server", "r", "svc", 1)
	o := r.DeepCopy()
	setSelector(o)
	s := ruleStore(o)
	if got := lookup(t, s, "client"); got != "" {
		t.Errorf("it applies to everybody: %s", got)
	}
	if p := s.Snapshot().Problems(); len(p) != 1 || p[0].Field != "spec.workloadSelector" {
		t.Errorf("problems %v", p)
	}
	s.Apply(Object{Object: r})
	if p := s.Snapshot().Problems(); len(p) != 0 || lookup(t, s, "client") == "" {
		t.Errorf("after it was corrected: problems %v", p)
	}
}
