package mesh

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestTheMostSpecificChoiceOfDiscoveryWins(t *testing.T) {
	const none = ""
	for _, c := range []struct {
		mesh, annotation, label, pod string
		want                         Discovery
	}{
		{none, none, none, none, DefaultDiscovery},
		{"on-demand", none, none, none, OnDemand},
		{"eager", none, none, none, Eager},
		{"eager", none, "on-demand", none, OnDemand},
		{"eager", "on-demand", none, none, OnDemand},
		{"eager", "on-demand", "eager", none, OnDemand},
		{"on-demand", "on-demand", none, "eager", Eager},
		{"eager", "eager", "eager", "on-demand", OnDemand},
		{"on-demand", "lazy", none, none, OnDemand},
		{"eager", none, none, "ON-DEMAND", Eager},
		{"on-demand", "eager", none, "sometimes", Eager},
		{"sometimes", none, none, none, DefaultDiscovery},
	} {
		t.Run(fmt.Sprintf("mesh=%s,annotation=%s,label=%s,pod=%s", c.mesh, c.annotation, c.label, c.pod), func(t *testing.T) {
			s := NewStore(Options{})
			set := func(m *map[string]string, value string) {
				if value != none {
					*m = map[string]string{DiscoveryAnnotation: value}
				}
			}
			config := &corev1.ConfigMap{ObjectMeta: meta("istio-system", "istio")}
			if c.mesh != none {
				config.Data = map[string]string{"mesh": "defaultConfig: {proxyMetadata: {WEFT_DISCOVERY: " + c.mesh + "}}"}
			}
			ns := &corev1.Namespace{ObjectMeta: meta("", "shop")}
			set(&ns.Annotations, c.annotation)
			set(&ns.Labels, c.label)
			pod := &corev1.Pod{ObjectMeta: meta("shop", "cart")}
			set(&pod.Annotations, c.pod)
			if err := s.Apply(Object{Object: config}, Object{Object: ns}, Object{Object: pod}); err != nil {
				t.Fatal(err)
			}
			n := s.Snapshot()
			if got := n.OnDemand(n.Workload("shop", "cart")); got != (c.want == OnDemand) {
				t.Errorf("on demand: %v, want %s", got, c.want)
			}
		})
	}
}

func TestGatewaysAndStrangersAreNeverOnDemand(t *testing.T) {
	s := NewStore(Options{})
	gateway := &corev1.Pod{ObjectMeta: meta("shop", "gateway")}
	gateway.Annotations = map[string]string{DiscoveryAnnotation: "on-demand", statusAnnotation: `{"templates": ["gateway"]}`}
	config := &corev1.ConfigMap{ObjectMeta: meta("istio-system", "istio"), Data: map[string]string{"mesh": "defaultConfig: {proxyMetadata: {WEFT_DISCOVERY: on-demand}}"}}
	if err := s.Apply(Object{Object: config}, Object{Object: gateway}); err != nil {
		t.Fatal(err)
	}
	n := s.Snapshot()
	if n.OnDemand(n.Workload("shop", "gateway")) {
		t.Error("a gateway has no app whose requests could say what it needs")
	}
	if n.OnDemand(n.Workload("shop", "nobody")) {
		t.Error("who has no pod has no workload that could ask")
	}
}

func TestAChoiceOfTheMeshCountsWithoutARestart(t *testing.T) {
	s := NewStore(Options{})
	pod := &corev1.Pod{ObjectMeta: meta("shop", "cart")}
	if err := s.Apply(Object{Object: pod}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []Discovery{OnDemand, Eager} {
		config := &corev1.ConfigMap{ObjectMeta: meta("istio-system", "istio"), Data: map[string]string{"mesh": "defaultConfig: {proxyMetadata: {WEFT_DISCOVERY: " + string(want) + "}}"}}
		if err := s.Apply(Object{Object: config}); err != nil {
			t.Fatal(err)
		}
		n := s.Snapshot()
		if got := n.OnDemand(n.Workload("shop", "cart")); got != (want == OnDemand) {
			t.Errorf("%s: on demand is %v", want, got)
		}
	}
}

func TestAWrongChoiceOfDiscoveryIsNamedWithItsRemedy(t *testing.T) {
	s := NewStore(Options{})
	config := &corev1.ConfigMap{ObjectMeta: meta("istio-system", "istio"), Data: map[string]string{"mesh": "defaultConfig: {proxyMetadata: {WEFT_DISCOVERY: lazy}}"}}
	ns := &corev1.Namespace{ObjectMeta: meta("", "shop")}
	ns.Annotations = map[string]string{DiscoveryAnnotation: "true"}
	ns.Labels = map[string]string{DiscoveryAnnotation: "Eager"}
	other := &corev1.Namespace{ObjectMeta: meta("", "other")}
	other.Annotations = map[string]string{DiscoveryAnnotation: "eager"}
	other.Labels = map[string]string{DiscoveryAnnotation: "on-demand"}
	pod := &corev1.Pod{ObjectMeta: meta("shop", "cart")}
	pod.Annotations = map[string]string{DiscoveryAnnotation: strings.Repeat("x", 10000)}
	if err := s.Apply(Object{Object: config}, Object{Object: ns}, Object{Object: other}, Object{Object: pod}); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`ConfigMap istio-system/istio: data.mesh: defaultConfig.proxyMetadata.WEFT_DISCOVERY: "lazy" is neither eager nor on-demand: write one of them`,
		`Namespace other: metadata.labels[weft.dev/discovery]: the annotation of the same name says "eager" and wins`,
		`Namespace shop: metadata.annotations[weft.dev/discovery]: "true" is neither eager nor on-demand: write one of them; until then the mesh decides`,
		`Namespace shop: metadata.labels[weft.dev/discovery]: "Eager" is neither eager nor on-demand`,
		`Pod shop/cart: metadata.annotations[weft.dev/discovery]: "xxx`,
	}
	got := s.Snapshot().Problems()
	if len(got) != len(want) {
		t.Fatalf("problems:\n%v", got)
	}
	for i, p := range got {
		if !strings.HasPrefix(p.String(), want[i]) || len(p.String()) > 400 {
			t.Errorf("problem %d: %.500s\nwant    %s", i, p, want[i])
		}
	}
	ns.Annotations, ns.Labels, other.Labels = nil, nil, nil
	ns, other = ns.DeepCopy(), other.DeepCopy()
	if err := s.Apply(Object{Object: ns}, Object{Object: other}); err != nil {
		t.Fatal(err)
	}
	s.Delete(Key{"Pod", "shop", "cart"}, Key{"ConfigMap", "istio-system", "istio"})
	if left := s.Snapshot().Problems(); len(left) != 0 {
		t.Errorf("problems that are gone: %v", left)
	}
}
