package webhook

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/mesh"
)

const virtualService = `{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: reviews, namespace: "on"},
	spec: {hosts: [reviews], http: [{route: [{destination: {host: reviews, subset: v1}}]}]}}`

// judgement is what /validate answers about an object that replaces another, which may be empty.
func judgement(t *testing.T, s *Server, object, old string, operation admissionv1.Operation) *admissionv1.AdmissionResponse {
	t.Helper()
	body := reviewOf(t, "on", object, func(r *admissionv1.AdmissionRequest) {
		r.Operation = operation
		r.Resource.Group, r.Resource.Version, r.Resource.Resource = "networking.istio.io", "v1", "virtualservices"
		r.Kind.Kind, r.Name = "VirtualService", "reviews"
		r.OldObject.Raw = []byte("{}")
		if old != "" {
			raw, err := yaml.YAMLToJSON([]byte(old))
			if err != nil {
				t.Fatal(err)
			}
			r.OldObject.Raw = raw
		}
	})
	req := httptest.NewRequest(http.MethodPost, "/validate", strings.NewReader(string(body)))
	req.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	s.ServeHTTP(w, req)
	review := new(admissionv1.AdmissionReview)
	if err := json.Unmarshal(w.Body.Bytes(), review); err != nil {
		t.Fatalf("%v: %s", err, w.Body)
	}
	return review.Response
}

func TestAMisspeltFieldIsRefusedBeforeItIsStored(t *testing.T) {
	s := newServer(t, Options{})
	if a := judgement(t, s, virtualService, "", admissionv1.Create); !a.Allowed {
		t.Errorf("a good one is refused: %+v", a.Result)
	}
	bad := strings.Replace(virtualService, "subset", "subst", 1)
	a := judgement(t, s, bad, virtualService, admissionv1.Update)
	if a.Allowed {
		t.Fatal("a misspelt one is allowed")
	}
	for _, want := range []string{"VirtualService on/reviews", "subst", "subset"} {
		if !strings.Contains(a.Result.Message, want) {
			t.Errorf("%q does not say %q", a.Result.Message, want)
		}
	}
	if a := judgement(t, s, bad, "", admissionv1.Delete); !a.Allowed {
		t.Error("what is wrong cannot be deleted")
	}
	labelled := strings.Replace(bad, `namespace: "on"`, `namespace: "on", labels: {a: b}`, 1)
	if a := judgement(t, s, labelled, bad, admissionv1.Update); !a.Allowed || len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "subst") {
		t.Errorf("an old mistake keeps its object from being labelled: %+v", a)
	}
}

func TestReferencesThatLeadNowhereAreWarnings(t *testing.T) {
	store := mesh.NewStore(mesh.Options{})
	s, err := New(Config{Namespace: func(string) (map[string]string, bool) { return nil, true }, References: store})
	if err != nil {
		t.Fatal(err)
	}
	const object = `{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: reviews, namespace: "on"},
		spec: {hosts: [reviews], gateways: [mesh, edge/web], http: [{mirror: {host: nobody.elsewhere.svc.cluster.local}, route: [{destination: {host: reviews}}]}]}}`
	ask := func() string {
		a := judgement(t, s, object, "", admissionv1.Create)
		if !a.Allowed {
			t.Fatalf("%+v", a.Result)
		}
		return strings.Join(a.Warnings, "\n")
	}
	const (
		gateway = "VirtualService on/reviews: spec.gateways[1]: there is no Gateway edge/web yet"
		host    = "spec.http[0].route[0].destination.host: no Service or ServiceEntry that namespace on sees has the host reviews.on.svc.cluster.local yet"
		mirror  = "spec.http[0].mirror.host: "
	)
	got := ask()
	for _, want := range []string{gateway, host, mirror} {
		if !strings.Contains(got, want) {
			t.Errorf("%q does not say %q", got, want)
		}
	}
	// No snapshot has been made of it: what was written a moment ago counts.
	if err := store.Apply(mesh.Object{Object: &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "reviews", Namespace: "on"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}}); err != nil {
		t.Fatal(err)
	}
	if got := ask(); strings.Contains(got, "route[0]") || !strings.Contains(got, gateway) {
		t.Error(got)
	}
}
