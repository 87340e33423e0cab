package main

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/deploy"
)

// serviceAddress puts an address on the loopback, since nothing here makes Services work.
func serviceAddress(t testing.TB, ip net.IP) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(32, 32)}}
	if err := netlink.AddrAdd(lo, address); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.AddrDel(lo, address); err != nil {
			t.Error(err)
		}
	})
}

// warnings collects what the API server tells a client beside its answer.
type warnings struct {
	mu   sync.Mutex
	list []string
}

func (w *warnings) HandleWarningHeaderWithContext(_ context.Context, _ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = append(w.list, text)
}

func (w *warnings) take() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := strings.Join(w.list, "\n")
	w.list = nil
	return text
}

// What a user of kubectl sees. The API server drops unknown fields before anybody is asked, and says so; everything else is weftd's word.
func TestMistakesAreRefusedWhenTheyAreWritten(t *testing.T) {
	api := newCluster(t)
	api.InstallDefinitions()
	serviceAddress(t, net.IPv4(10, 96, 0, 100))
	api.Apply("apiVersion: v1\nkind: Service\nmetadata: {name: istiod, namespace: istio-system}\nspec: {clusterIP: 10.96.0.100, ports: [{name: https-webhook, port: 443}]}")
	// Stored before anybody judged it: the schema has nothing against it.
	stale := "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: stale, namespace: default}\nspec: {hosts: [stale], http: [{match: [{uri: {regex: '('}}], route: [{destination: {host: stale}}]}]}"
	raw := func(text string) *unstructured.Unstructured {
		t.Helper()
		u := new(unstructured.Unstructured)
		if err := yaml.Unmarshal([]byte(text), &u.Object); err != nil {
			t.Fatal(err)
		}
		return u
	}
	heard := new(warnings)
	config := api.Config()
	config.WarningHandlerWithContext = heard
	c, err := client.New(config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Create(t.Context(), raw(stale)); err != nil {
		t.Fatal(err)
	}
	install(t, api, deploy.Base, "", "ValidatingWebhookConfiguration")
	r := startReplica(t, api, 20000, "--webhook-address", "10.96.0.100:443")
	eventually(t, "ready", r.ready)
	eventually(t, "the webhook is closed", func() bool {
		return *get[admissionv1.ValidatingWebhookConfiguration](api.Client(), "", "istiod-default-validator").Webhooks[0].FailurePolicy == admissionv1.Fail
	})
	heard.take()
	reason := func(kind, name string) string {
		var list corev1.EventList
		if err := c.List(t.Context(), &list, client.InNamespace("default")); err != nil {
			t.Fatal(err)
		}
		for _, e := range list.Items {
			if e.InvolvedObject.Kind == kind && e.InvolvedObject.Name == name && e.InvolvedObject.UID != "" {
				return e.Reason + ": " + e.Message
			}
		}
		return ""
	}
	eventually(t, "the old mistake is an event of its object", func() bool {
		return strings.HasPrefix(reason("VirtualService", "stale"), "CannotBeUsed: spec.http[0].match[0].uri.regex: ")
	})
	if log := r.log(); !strings.Contains(log, "VirtualService default/stale: spec.http[0].match[0].uri.regex: ") {
		t.Errorf("the log:\n%s", log)
	}

	virtualService := func(name, http string) string {
		return "apiVersion: networking.istio.io/v1beta1\nkind: VirtualService\nmetadata: {name: " + name + ", namespace: default}\nspec: {hosts: [reviews], http: [" + http + "]}"
	}
	for _, x := range []struct {
		text    string
		options []client.CreateOption
		refused []string // parts of the message; none: it is stored
		warned  []string
	}{
		{text: virtualService("a", "{route: [{destination: {host: reviews}}]}"),
			warned: []string{"VirtualService default/a: spec.http[0].route[0].destination.host: no Service or ServiceEntry that namespace default sees has the host reviews.default.svc.cluster.local yet"}},
		{text: virtualService("b", "{route: [{destination: {host: reviews}, weigth: 3}]}"), options: []client.CreateOption{client.FieldValidation("Strict")},
			refused: []string{"weigth"}},
		{text: virtualService("c", "{route: [{destination: {host: reviews}, weigth: 3}]}"), options: []client.CreateOption{client.FieldValidation("Warn")},
			warned: []string{`unknown field "spec.http[0].route[0].weigth"`}},
		{text: virtualService("d", "{match: [{uri: {regex: '['}}], route: [{destination: {host: reviews}}]}"),
			refused: []string{"VirtualService default/d: spec.http[0].match[0].uri.regex", "is not a regular expression in RE2 syntax"}},
		{text: "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: default}\nspec: {selector: {istio: edge}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ['*'], tls: {mode: SIMPLE, credentialName: other/shop}}]}",
			refused: []string{"Gateway default/g: spec.servers[0].tls.credentialName", "namespace of the gateway's pods only"}},
		{text: "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: h, namespace: default}\nspec: {selector: {istio: edge}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}",
			warned: []string{"Gateway default/h: spec.selector: no pod has these labels yet"}},
		{text: "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: default}\nspec: {action: DENY, rules: [{}]}",
			warned: []string{"NOT ENFORCED"}},
		{text: "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: default}\nspec: {mtls: {mode: STRICTER}}",
			refused: []string{"STRICTER"}},
	} {
		err := c.Create(t.Context(), raw(x.text), x.options...)
		said := heard.take()
		if (err != nil) != (len(x.refused) > 0) {
			t.Errorf("%s:\n%v", x.text, err)
			continue
		}
		for _, want := range x.refused {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s:\nrefused with %v, want %q", x.text, err, want)
			}
		}
		for _, want := range x.warned {
			if !strings.Contains(said, want) {
				t.Errorf("%s:\nwarned of %q, want %q", x.text, said, want)
			}
		}
		if err != nil {
			t.Logf("%v", err)
		}
		if said != "" {
			t.Logf("Warning: %s", said)
		}
	}

	eventually(t, "a policy that nothing enforces is an event", func() bool { return strings.Contains(reason("AuthorizationPolicy", "p"), "NOT ENFORCED") })

	// The old mistake does not keep its object from being labelled or removed.
	old := raw(stale)
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(old), old); err != nil {
		t.Fatal(err)
	}
	old.SetLabels(map[string]string{"seen": "yes"})
	if err := c.Update(t.Context(), old); err != nil {
		t.Errorf("an object with an old mistake cannot be labelled: %v", err)
	}
	if err := unstructured.SetNestedStringSlice(old.Object, []string{"other"}, "spec", "hosts"); err != nil {
		t.Fatal(err)
	}
	if err := c.Update(t.Context(), old); err == nil {
		t.Error("an object with a mistake can be changed")
	}

	// Nobody looks: refused, with the name of who should have.
	r.cmd.Process.Kill()
	<-r.done
	err = c.Create(t.Context(), raw(virtualService("late", "{route: [{destination: {host: reviews}}]}")))
	if err == nil || !apierrors.IsInternalError(err) || !strings.Contains(err.Error(), "istiod.istio-system.svc") {
		t.Errorf("while weftd is away: %v", err)
	}
	if err := c.Delete(t.Context(), old); err != nil {
		t.Errorf("an object with an old mistake cannot be removed: %v", err)
	}
}
