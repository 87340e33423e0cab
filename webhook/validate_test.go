package webhook

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
)

func TestAMisspeltFieldIsRefusedBeforeItIsStored(t *testing.T) {
	s := newServer(t, Options{})
	ask := func(object string, operation admissionv1.Operation) *admissionv1.AdmissionResponse {
		t.Helper()
		body := reviewOf(t, "on", object, func(r *admissionv1.AdmissionRequest) {
			r.Operation = operation
			r.Resource.Group, r.Resource.Version, r.Resource.Resource = "networking.istio.io", "v1", "virtualservices"
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
	const good = `{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: reviews, namespace: prod},
		spec: {hosts: [reviews], http: [{route: [{destination: {host: reviews, subset: v1}}]}]}}`
	if a := ask(good, admissionv1.Create); !a.Allowed {
		t.Errorf("a good one is refused: %+v", a.Result)
	}
	bad := strings.Replace(good, "subset", "subst", 1)
	a := ask(bad, admissionv1.Update)
	if a.Allowed {
		t.Fatal("a misspelt one is allowed")
	}
	for _, want := range []string{"VirtualService prod/reviews", "subst", "subset"} {
		if !strings.Contains(a.Result.Message, want) {
			t.Errorf("%q does not say %q", a.Result.Message, want)
		}
	}
	if a := ask(bad, admissionv1.Delete); !a.Allowed {
		t.Error("what is wrong cannot be deleted")
	}
}
