package kube

import (
	"strings"
	"testing"

	"github.com/weft-mesh/weft/e2e/kubernetes"
)

func TestDiscoverySelectors(t *testing.T) {
	api := kubernetes.StartAPIServer(t)
	api.InstallDefinitions("virtualservices")
	space := func(name, labels string) {
		api.Apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: " + name + ", labels: {" + labels + "}}")
	}
	const inside = `
apiVersion: v1
kind: Service
metadata: {name: a, namespace: NS}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: NS}
spec: {containers: [{name: c, image: i}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v, namespace: NS}
spec: {hosts: [a], http: [{route: [{destination: {host: a}}]}]}
`
	selectors := func(text string) {
		api.Apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: '" + text + "'")
	}
	space("istio-system", "")
	space("one", "mesh: 'on'")
	space("two", "")
	for _, ns := range []string{"one", "two"} {
		api.Apply(strings.ReplaceAll(inside, "NS", ns))
	}
	selectors(`{discoverySelectors: [{matchLabels: {mesh: "on"}}]}`)
	r := read(t, api.Config())
	present := func(what, ns string) {
		t.Helper()
		for _, kind := range []string{"Service " + ns + "/a", "Pod " + ns + "/p", "VirtualService " + ns + "/v"} {
			r.eventually(what+": "+kind, has(kind))
		}
	}
	absent := func(what, ns string) {
		t.Helper()
		for _, kind := range []string{"Service ", "Pod ", "VirtualService "} {
			r.eventually(what+": no "+kind+ns, hasNot(kind+ns+"/"))
		}
	}
	present("selected from the start", "one")
	absent("not selected from the start", "two")

	space("two", "mesh: 'on'")
	present("labelled later", "two")
	space("two", "")
	absent("unlabelled", "two")
	api.Delete("apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: two}\nspec: {}")
	api.Apply("apiVersion: v1\nkind: Service\nmetadata: {name: b, namespace: two}\nspec: {ports: [{port: 80}]}")
	space("two", "mesh: 'on'")
	r.eventually("labelled again: what came meanwhile", has("Service two/b"))
	r.eventually("labelled again: what stayed", has("VirtualService two/v"))
	r.eventually("labelled again: what went meanwhile", hasNot("Pod two/p"))

	selectors(`{discoverySelectors: [{matchExpressions: [{key: kubernetes.io/metadata.name, operator: In, values: [default]}]}]}`)
	absent("other selectors", "one")
	r.eventually("other selectors", has("Service default/kubernetes"))
	selectors(`{discoverySelectors: [{matchExpressions: [{key: x, operator: Nonsense}]}]}`)
	selectors(`{}`)
	present("no selectors", "one")
	r.eventually("no selectors", has("Service two/b"))
}

func TestMeshKindsMayBeInstalledLater(t *testing.T) {
	api := kubernetes.StartAPIServer(t)
	api.Apply(cluster)
	r := read(t, api.Config()) // is ready without any mesh kind
	const route = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: x, namespace: default}
spec: {hosts: [base], http: [{route: [{destination: {host: base}}]}]}
`
	for range 2 {
		api.InstallDefinitions("virtualservices", "destinationrules")
		api.Apply(route)
		r.eventually("the first route", has("VirtualService default/x"))
		api.RemoveDefinitions("virtualservices", "destinationrules")
		r.eventually("the definition and all routes are removed", hasNot("VirtualService default/x"))
	}
}
