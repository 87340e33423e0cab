package mesh

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Istio, exportTo: "." is the namespace in which the object is declared, "*" all namespaces; nothing means the mesh's default, which is all.
func TestExportTo(t *testing.T) {
	for _, c := range []struct {
		exportTo, fallback []string
		client             string
		want               bool
	}{
		{nil, nil, "other", true},
		{nil, []string{"."}, "other", false},
		{nil, []string{"."}, "own", true},
		{[]string{"*"}, []string{"."}, "other", true},
		{[]string{"."}, nil, "other", false},
		{[]string{"."}, nil, "own", true},
		{[]string{"other", "third"}, nil, "other", true},
		{[]string{"other"}, nil, "own", false},
		{[]string{".", "other"}, nil, "own", true},
		{[]string{"~"}, nil, "own", false},
	} {
		if got := visible(c.exportTo, c.fallback, "own", c.client); got != c.want {
			t.Errorf("exportTo %v, default %v: %s sees it: %v", c.exportTo, c.fallback, c.client, got)
		}
	}
}

func TestServicesAreHiddenByTheirExportToAnnotation(t *testing.T) {
	s := NewStore(Options{})
	svc := func(ns, name, exportTo string) *corev1.Service {
		o := &corev1.Service{ObjectMeta: meta(ns, name), Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Port: 80}}}}
		if exportTo != "" {
			o.Annotations = map[string]string{exportToAnnotation: exportTo}
		}
		return o
	}
	s.Apply(objects(svc("a", "public", ""), svc("a", "private", "."), svc("a", "shared", "b, c"))...)
	n := s.Snapshot()
	sees := func(client string) (names []string) {
		for svc := range n.Services(client) {
			names = append(names, svc.Name)
			if n.Service(client, svc.Host) != svc {
				t.Errorf("%s lists %s and does not find it", client, svc.Host)
			}
		}
		return names
	}
	for client, want := range map[string][]string{"a": {"private", "public"}, "b": {"public", "shared"}, "d": {"public"}} {
		if got := sees(client); !slices.Equal(got, want) {
			t.Errorf("%s sees %v, want %v", client, got, want)
		}
	}
	if n.Service("d", "shared.a.svc.cluster.local") != nil {
		t.Error("d finds a service that is not exported to it")
	}
	if a, b := n.VisibleServices("b"), n.VisibleServices("b"); &a[0] != &b[0] {
		t.Error("the list is made anew each time")
	}
}

func TestOfTwoClaimsToAHostTheKubernetesServiceWins(t *testing.T) {
	s := NewStore(Options{})
	old := metav1.Unix(1000, 0)
	e := entry("b", "claim", "reviews.a.svc.cluster.local")
	e.CreationTimestamp = old
	own := entry("c", "own", "x.example.com")
	own.CreationTimestamp = metav1.Unix(2000, 0)
	first := entry("b", "first", "x.example.com")
	first.CreationTimestamp = old
	s.Apply(objects(e, own, first, &corev1.Service{ObjectMeta: meta("a", "reviews"), Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1"}})...)
	n := s.Snapshot()
	if svc := n.Service("b", "reviews.a.svc.cluster.local"); svc.Kind != "Service" {
		t.Errorf("a %s won", svc.Ref)
	}
	if svc := n.Service("c", "x.example.com"); svc.Name != "own" {
		t.Errorf("in c %s won, not the namespace's own", svc.Ref)
	}
	if svc := n.Service("d", "x.example.com"); svc.Name != "first" {
		t.Errorf("in d %s won, not the oldest", svc.Ref)
	}
	if got := len(n.VisibleServices("d")); got != 2 {
		t.Errorf("d sees %d services for 2 hosts", got)
	}
}
