package mesh

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What is wanted after any history is what the objects say that are there at its end.
func TestSecretsAreWantedExactlyWhereGatewaysNeedThem(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	store := NewStore(Options{})
	gateways, pods := map[string]*networking.Gateway{}, map[string]*corev1.Pod{}
	_, changed := store.Credentials()
	var last []string
	for step := range 3000 {
		name := fmt.Sprint(r.IntN(6))
		ns := fmt.Sprint("ns", r.IntN(3))
		switch r.IntN(6) {
		case 0, 1:
			g := &networking.Gateway{Selector: map[string]string{"istio": fmt.Sprint(r.IntN(3))}}
			for i := range r.IntN(3) {
				tls := &networking.ServerTLSSettings{CredentialName: fmt.Sprint("c", r.IntN(3))}
				if i == 1 {
					tls = &networking.ServerTLSSettings{CredentialName: "other/x", CaCertCredentialName: "ca"}
				}
				g.Servers = append(g.Servers, &networking.Server{Tls: tls})
			}
			gateways[name] = g
			o := &networkingv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
			g.DeepCopyInto(&o.Spec)
			if err := store.Apply(Object{Object: o}); err != nil {
				t.Fatal(err)
			}
		case 2:
			delete(gateways, name)
			store.Delete(Key{"Gateway", "default", name})
		case 3, 4:
			p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: map[string]string{"istio": fmt.Sprint(r.IntN(4))}}}
			if r.IntN(4) > 0 {
				p.Annotations = map[string]string{"inject.istio.io/templates": "gateway"}
			}
			if r.IntN(8) == 0 {
				p.Status.Phase = corev1.PodFailed
			}
			pods[ns+"/"+name] = p
			if err := store.Apply(Object{Object: p}); err != nil {
				t.Fatal(err)
			}
		case 5:
			delete(pods, ns+"/"+name)
			store.Delete(Key{"Pod", ns, name})
		}
		if r.IntN(5) == 0 {
			store.Snapshot()
		}
		want := map[string]bool{}
		for _, g := range gateways {
			for _, p := range pods {
				if p.Annotations == nil || p.Status.Phase == corev1.PodFailed || p.Labels["istio"] != g.Selector["istio"] {
					continue
				}
				for _, s := range g.Servers {
					if c := s.Tls.CredentialName; c != "other/x" {
						want[p.Namespace+"/"+c], want[p.Namespace+"/"+c+"-cacert"] = true, true
					} else {
						want[p.Namespace+"/ca"], want[p.Namespace+"/ca-cacert"] = true, true
					}
				}
			}
		}
		told := false
		select {
		case <-changed:
			told = true
		default:
		}
		keys, next := store.Credentials()
		var got []string
		for _, k := range keys {
			got = append(got, k.Namespace+"/"+k.Name)
		}
		if !slices.Equal(got, slices.Sorted(maps.Keys(want))) {
			t.Fatalf("step %d: %q are wanted, want %q", step, got, slices.Sorted(maps.Keys(want)))
		}
		if !slices.Equal(got, last) && !told {
			t.Fatalf("step %d: nobody was told of a change", step)
		}
		last, changed = got, next
	}
	if len(last) == 0 {
		t.Error("the history ends with nothing wanted: it shows little")
	}
}
