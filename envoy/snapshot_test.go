package envoy

import (
	"bytes"
	"testing"

	istio "istio.io/client-go/pkg/clientset/versioned/scheme"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	kubernetes "k8s.io/client-go/kubernetes/scheme"

	"github.com/weft-mesh/weft/mesh"
)

// snapshotOf is the mesh that YAML documents describe.
func snapshotOf(t testing.TB, documents string) *mesh.Snapshot {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{kubernetes.AddToScheme, istio.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	store := mesh.NewStore(mesh.Options{})
	for _, doc := range bytes.Split([]byte(documents), []byte("\n---\n")) {
		if len(bytes.TrimSpace(doc)) == 0 {
			continue
		}
		json, err := yaml.ToJSON(doc)
		if err != nil {
			t.Fatal(err)
		}
		if string(json) == "null" { // only comments
			continue
		}
		o, _, err := decoder.Decode(json, nil, nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		store.Apply(mesh.Object{Object: o})
	}
	s := store.Snapshot()
	for _, p := range s.Problems() {
		t.Logf("%v", p)
	}
	return s
}
