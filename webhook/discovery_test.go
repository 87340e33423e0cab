package webhook

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/mesh"
)

// discoveryPod has the annotations, each a line "name: value".
func discoveryPod(annotations ...string) string {
	pod := "{apiVersion: v1, kind: Pod, metadata: {name: cart, annotations: {"
	return pod + strings.Join(annotations, ", ") + "}}, spec: {containers: [{name: app, image: example.com/app}]}}"
}

func TestASidecarKeepsTheDiscoveryThatItsPodWasMadeWith(t *testing.T) {
	for _, c := range []struct {
		name, namespace, pod string
		want                 string
	}{
		{"the namespace's", "on", discoveryPod(), "on-demand"},
		{"the pod's own", "on", discoveryPod("weft.dev/discovery: eager"), "eager"},
		{"the pod's ProxyConfig", "on", discoveryPod(`proxy.istio.io/config: "proxyMetadata: {WEFT_DISCOVERY: eager}"`), "eager"},
		{"a ProxyConfig that says something else", "on", discoveryPod(`proxy.istio.io/config: "concurrency: 2"`), "on-demand"},
		{"the annotation before the ProxyConfig", "on", discoveryPod("weft.dev/discovery: on-demand", `proxy.istio.io/config: "proxyMetadata: {WEFT_DISCOVERY: eager}"`), "on-demand"},
		{"a gateway", "on", discoveryPod("inject.istio.io/templates: gateway"), ""},
		{"no proxy", "kube-system", discoveryPod(), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newServer(t, Options{})
			s.discovery = func(namespace string) mesh.Discovery {
				if namespace == "on" {
					return mesh.OnDemand
				}
				return mesh.Eager
			}
			server := httptest.NewServer(s)
			defer server.Close()
			answer, status := post(t, server.URL, http.DefaultClient, reviewOf(t, c.namespace, c.pod))
			if status != http.StatusOK || !answer.Allowed {
				t.Fatalf("status %d, answer %+v", status, answer)
			}
			raw, err := sigsyaml.YAMLToJSON([]byte(c.pod))
			if err != nil {
				t.Fatal(err)
			}
			if answer.Patch != nil {
				patch, err := jsonpatch.DecodePatch(answer.Patch)
				if err != nil {
					t.Fatal(err)
				}
				if raw, err = patch.Apply(raw); err != nil {
					t.Fatal(err)
				}
			}
			var pod corev1.Pod
			if err := json.Unmarshal(raw, &pod); err != nil {
				t.Fatal(err)
			}
			if got := pod.Annotations[mesh.DiscoveryAnnotation]; got != c.want {
				t.Errorf("%s: %q, want %q", mesh.DiscoveryAnnotation, got, c.want)
			}
		})
	}
}

func TestAWordThatIsNoDiscoveryIsRefused(t *testing.T) {
	server := httptest.NewServer(newServer(t, Options{}))
	defer server.Close()
	answer, status := post(t, server.URL, http.DefaultClient, reviewOf(t, "on", discoveryPod("weft.dev/discovery: lazy")))
	if status != http.StatusOK || answer.Allowed {
		t.Fatalf("status %d, answer %+v", status, answer)
	}
	const want = `annotation weft.dev/discovery: value "lazy": "lazy" is neither eager nor on-demand`
	if !strings.Contains(answer.Result.Message, want) {
		t.Errorf("message %q\nwant %q", answer.Result.Message, want)
	}
}
