package main

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/weft-mesh/weft/deploy"
	"github.com/weft-mesh/weft/e2e/kubernetes"
)

// refusals counts the requests that the API server refused to anybody, by its own metrics.
func refusals(t testing.TB, api *kubernetes.APIServer) (lines []string) {
	t.Helper()
	h, err := rest.HTTPClientFor(api.Config())
	if err != nil {
		t.Fatal(err)
	}
	defer h.CloseIdleConnections()
	answer, err := h.Get(kubernetes.Host + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "apiserver_request_total{") && strings.Contains(line, `code="403"`) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// The rights are the chart's. What weftd asks for beyond them would be refused and counted.
func TestWeftdAsksForNothingBeyondItsChartsRights(t *testing.T) {
	api := newCluster(t)
	api.InstallDefinitions()
	install(t, api, deploy.Gateway, "", "RoleBinding")
	api.Apply(bookinfo)
	// A gateway in the root namespace, where the gateway chart gives the right to read Secrets.
	api.Apply("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: edge, namespace: istio-system}")
	api.Apply(strings.ReplaceAll(edge, "namespace: edge", "namespace: istio-system"))
	install(t, api, deploy.Base, "", "ValidatingWebhookConfiguration")
	install(t, api, deploy.Istiod, "", "ValidatingWebhookConfiguration", "MutatingWebhookConfiguration")
	r := startReplica(t, api, 20000)
	eventually(t, "ready", r.ready)
	for line := range strings.Lines(r.log()) {
		if strings.Contains(line, "after=") {
			t.Log(strings.TrimSpace(line))
		}
	}
	eventually(t, "mistakes are errors from now on", func() bool {
		closed := func(name string) bool {
			w := get[admissionv1.ValidatingWebhookConfiguration](api.Client(), "", name).Webhooks[0]
			return len(w.ClientConfig.CABundle) > 0 && *w.FailurePolicy == admissionv1.Fail
		}
		return closed("istiod-default-validator") && closed("istio-validator-istio-system")
	})
	eventually(t, "the leader has written", func() bool {
		return get[corev1.ConfigMap](api.Client(), "edge", "istio-ca-root-cert") != nil
	})
	if lines := refusals(t, api); len(lines) > 0 {
		t.Errorf("refused:\n%s", strings.Join(lines, "\n"))
	}
	if strings.Contains(r.log(), "forbidden") {
		t.Errorf("the log:\n%s", r.log())
	}

	c, err := client.New(api.ConfigFor(api.Token("istio-system", "istiod", "", "")), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, not := range []authorizationv1.ResourceAttributes{
		{Verb: "list", Resource: "secrets"},
		{Verb: "list", Resource: "secrets", Namespace: "default"},
		{Verb: "get", Resource: "secrets", Namespace: "kube-system", Name: "x"},
		{Verb: "create", Resource: "pods", Namespace: "default"},
		{Verb: "delete", Resource: "pods", Namespace: "default"},
		{Verb: "create", Resource: "pods", Subresource: "exec", Namespace: "default"},
		{Verb: "update", Resource: "configmaps", Namespace: "default", Name: "mine"},
		{Verb: "update", Resource: "configmaps", Namespace: "istio-system", Name: "istio"},
		{Verb: "delete", Resource: "configmaps", Namespace: "istio-system", Name: "weft-learned-0"},
		{Verb: "list", Resource: "configmaps", Namespace: "istio-system"},
		{Verb: "list", Resource: "configmaps"},
		{Verb: "create", Resource: "serviceaccounts", Subresource: "token", Namespace: "default"},
		{Verb: "create", Group: "authentication.k8s.io", Resource: "tokenreviews"},
		{Verb: "create", Group: "admissionregistration.k8s.io", Resource: "mutatingwebhookconfigurations"},
		{Verb: "update", Group: "networking.istio.io", Resource: "virtualservices", Namespace: "default"},
		{Verb: "create", Group: "rbac.authorization.k8s.io", Resource: "clusterroles"},
		{Verb: "impersonate", Resource: "users"},
		{Verb: "patch", Resource: "nodes"},
	} {
		review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &not}}
		if err := c.Create(context.Background(), review); err != nil {
			t.Fatal(err)
		}
		if review.Status.Allowed {
			t.Errorf("weftd may %s %s/%s in %q", not.Verb, not.Resource, not.Subresource, not.Namespace)
		}
	}
}

// In a namespace without the gateway chart's RoleBinding the Secret cannot be read, which is said with the remedy; with it, it is served, and followed.
func TestAGatewaysSecretIsReadWhereTheChartLetsWeftd(t *testing.T) {
	api := newCluster(t)
	api.InstallDefinitions()
	api.Apply(edge)
	first, second := makeCertificate(t, "first"), makeCertificate(t, "second")
	api.Apply(secretYAML("shop", "tls.crt", first.cert, "tls.key", first.key) + secretYAML("other", "tls.crt", first.cert, "tls.key", first.key))
	r := startReplica(t, api, 20000)
	eventually(t, "ready, although a Secret cannot be read", r.ready)
	var root *corev1.ConfigMap
	eventually(t, "the root", func() bool {
		root = get[corev1.ConfigMap](api.Client(), "edge", "istio-ca-root-cert")
		return root != nil
	})
	files := root.Data
	files["istio-token"] = api.Token("edge", "edge", "edge-1", "istio-ca")
	p := gatewayProxy(t, r.address(12), files)
	p.Live()
	problems := func() string {
		answer, err := http.Get("http://" + r.address(14) + "/debug/problemz")
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	const remedy = "kubectl create rolebinding istiod-gateway-secrets -n edge --clusterrole=istiod-gateway-secrets --serviceaccount=istio-system:istiod"
	eventually(t, "the remedy", func() bool {
		return strings.Contains(problems(), "Secret edge/shop: ") && strings.Contains(problems(), remedy)
	})
	if got := shows("shop.example.com", nil); !strings.HasPrefix(got, "no connection") {
		t.Errorf("without the right to read the Secret: %s", got)
	}
	api.Apply(`
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: istiod-gateway-secrets, namespace: edge}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: istiod-gateway-secrets}
subjects: [{kind: ServiceAccount, name: istiod, namespace: istio-system}]
`)
	began := time.Now()
	eventually(t, "the certificate is shown", func() bool { return shows("shop.example.com", nil) == "first 200" })
	t.Logf("%s after the right was given", time.Since(began).Round(time.Millisecond))
	began = time.Now()
	api.Apply(secretYAML("shop", "tls.crt", second.cert, "tls.key", second.key))
	eventually(t, "the new certificate is shown", func() bool { return shows("shop.example.com", nil) == "second 200" })
	t.Logf("%s after the Secret changed", time.Since(began).Round(time.Millisecond))
	eventually(t, "no complaint is left of it", func() bool { return !strings.Contains(problems(), "edge/shop") })

	// weftd goes and comes back; the API server too. The gateway keeps its certificate, and is sent nothing.
	api.Kill()
	api.Start()
	api.Apply(secretYAML("shop", "tls.crt", first.cert, "tls.key", first.key))
	eventually(t, "a change after the API server's restart", func() bool { return shows("shop.example.com", nil) == "first 200" })
}
