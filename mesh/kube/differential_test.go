package kube

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/e2e/kubernetes"
	"github.com/weft-mesh/weft/envoy"
	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/mesh/manifest"
)

// The same YAML, as files and through an API server, must give every proxy the same bytes.
func TestTheAPIServerChangesNothing(t *testing.T) {
	api := kubernetes.StartAPIServer(t)
	api.InstallDefinitions()
	r := read(t, api.Config())

	testdata := filepath.Join(kit.RepoRoot(t), "envoy", "testdata")
	base, err := os.ReadFile(filepath.Join(testdata, "bookinfo.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	inputs, err := filepath.Glob(filepath.Join(testdata, "*", "in.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var own corev1.Service
	if err := api.Client().Get(context.Background(), client.ObjectKey{Namespace: "default", Name: "kubernetes"}, &own); err != nil {
		t.Fatal(err)
	}
	compared := 0
	for _, path := range inputs {
		t.Run(filepath.Base(filepath.Dir(path)), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			objects, why := together(string(base), string(text))
			if why != "" {
				t.Skip(why)
			}
			fromFiles := mesh.NewStore(mesh.Options{})
			_ = fromFiles.Apply(objects...)                          // mistakes are part of some inputs
			_ = fromFiles.Apply(mesh.Object{Object: own.DeepCopy()}) // every cluster has it
			var written []client.Object
			for _, o := range objects {
				written = append(written, o.Object.DeepCopyObject().(client.Object))
			}
			for _, o := range written {
				space := o.GetNamespace()
				if space != "" && r.store.Namespace(space) == nil {
					api.Apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: " + space + "}")
				}
			}
			undo, err := api.Try(written)
			defer undo()
			if err != nil {
				t.Skipf("no object for an API server: %v", err)
			}
			compared++
			want := configuration(fromFiles.Snapshot())
			var got string
			for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
				if got = configuration(r.store.Snapshot()); got == want {
					return
				}
			}
			t.Errorf("through the API server:\n%s\nfrom files:\n%s", only(got, want), only(want, got))
		})
	}
	if compared < 20 {
		t.Errorf("only %d inputs were compared", compared)
	}
}

// together merges manifests as an API server would have them: later ones replace earlier ones, and the oldest
// have the first name. why says what an API server would not accept.
func together(texts ...string) (out []mesh.Object, why string) {
	byKey := map[mesh.Key]mesh.Object{}
	for _, text := range texts {
		objects, _, err := manifest.Decode(strings.NewReader(text), "")
		if err != nil {
			return nil, err.Error()
		}
		manifest.SetNamespace(objects, "default")
		for _, o := range objects {
			k, err := mesh.KeyOf(o.Object)
			if err != nil {
				return nil, err.Error()
			}
			if s, ok := o.Object.(*corev1.Service); ok && s.Spec.ClusterIP == "" && s.Spec.Type != corev1.ServiceTypeExternalName {
				s.Spec.ClusterIP = fmt.Sprintf("10.96.200.%d", len(byKey)+1) // the API server would choose one
				s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
			}
			if m, ok := o.Object.(client.Object); ok { // the API server has its own clock
				m.SetCreationTimestamp(metav1.Time{})
			}
			byKey[k] = o
		}
	}
	for _, o := range byKey {
		out = append(out, o)
	}
	slices.SortFunc(out, func(a, b mesh.Object) int {
		return strings.Compare(orderOf(a), orderOf(b))
	})
	return out, ""
}

func orderOf(o mesh.Object) string {
	k, _ := mesh.KeyOf(o.Object)
	first := "b"
	if k.Kind == "Namespace" {
		first = "a"
	}
	return first + k.Namespace + "/" + k.Name + " " + k.Kind
}

// configuration is what all proxies of a mesh are told, one resource a line.
func configuration(s *mesh.Snapshot) string {
	world := envoy.NewWorld(s, nil)
	var out []string
	for w := range s.Workloads() {
		kinds := []envoy.Kind{envoy.Sidecar}
		if strings.Contains(w.Labels["istio"], "gateway") {
			kinds = append(kinds, envoy.Router)
		}
		for _, kind := range kinds {
			p := envoy.Proxy{Kind: kind, Namespace: w.Namespace, Pod: w.Name, ServiceAccount: w.ServiceAccount, Workload: w}
			for _, set := range world.Sets(p) {
				for _, rs := range set.Resources {
					for _, r := range rs {
						out = append(out, fmt.Sprintf("%s/%s %v %s %s", w.Namespace, w.Name, r.Type, r.Name, r.Version))
					}
				}
			}
		}
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), "\n")
}

// only is what a has and b has not.
func only(a, b string) string {
	in := map[string]bool{}
	for l := range strings.SplitSeq(b, "\n") {
		in[l] = true
	}
	var out bytes.Buffer
	for l := range strings.SplitSeq(a, "\n") {
		if !in[l] {
			fmt.Fprintln(&out, l)
		}
	}
	return out.String()
}
