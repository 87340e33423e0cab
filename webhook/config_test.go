package webhook

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/redirect"
)

const injectorValuesText = `{
 "revision": "",
 "global": {
  "hub": "registry.example.com/mesh", "tag": "1.2.3", "imagePullPolicy": "IfNotPresent", "imagePullSecrets": ["pull"], "network": "east",
  "multiCluster": {"clusterName": "c1"},
  "proxy": {"image": "proxyv2", "clusterDomain": "corp.example", "logLevel": "info", "componentLogLevel": "http:debug", "startGate": "probe",
   "includeIPRanges": "10.0.0.0/8", "excludeIPRanges": "10.1.0.0/16", "includeInboundPorts": "*", "excludeOutboundPorts": "5432",
   "resources": {"requests": {"cpu": "7m", "memory": "33Mi"}}}
 },
 "sidecarInjectorWebhook": {"enableNamespacesByDefault": false}
}`

const injectorConfigText = `
policy: disabled
neverInjectSelector: [{matchExpressions: [{key: batch, operator: Exists}]}]
defaultTemplates: [sidecar, own]
templates:
  own: |
    metadata: {labels: {own: "yes"}}
`

func TestTheInjectorsConfigMapIsIstios(t *testing.T) {
	o, err := ReadOptions(Options{Revision: "default", LogLevel: "error"}, []byte(injectorValuesText), []byte(injectorConfigText))
	if err != nil {
		t.Fatal(err)
	}
	if o.ProxyImage != "" {
		t.Errorf("image %q: Istio's own proxy is none that works here", o.ProxyImage)
	}
	if o.ImagePullPolicy != corev1.PullIfNotPresent || !slices.Equal(o.ImagePullSecrets, []string{"pull"}) || o.Network != "east" || o.ClusterID != "c1" ||
		o.ClusterDomain != "corp.example" || o.ComponentLog != "http:debug" || o.StartGate != "probe" || o.Policy != PolicyDisabled {
		t.Errorf("%+v", o)
	}
	if o.LogLevel != "error" {
		t.Error("a flag does not win over the ConfigMap")
	}
	if got := o.Resources.Requests.Cpu().String(); got != "7m" {
		t.Errorf("cpu request %s", got)
	}
	r := o.Redirect
	if !slices.Equal(r.IncludeOutboundCIDRs.List, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}) || len(r.ExcludeOutboundCIDRs) != 1 ||
		!r.IncludeInboundPorts.All || !slices.Equal(r.ExcludeOutboundPorts, []uint16{5432}) || r.Mode != redirect.Redirect {
		t.Errorf("redirection %+v", r)
	}
	in, err := NewInjector(o)
	if err != nil {
		t.Fatal(err)
	}
	if in.templates["own"] == nil || in.templates[templateSidecar] == nil {
		t.Error("the user's template, or the mesh's own, is missing")
	}
	for image, want := range map[string]string{"": "", "auto": "", "mine": "registry.example.com/mesh/mine:1.2.3", "docker.io/envoyproxy/envoy:v1.40.0": "docker.io/envoyproxy/envoy:v1.40.0"} {
		if got, err := proxyImage("registry.example.com/mesh", "1.2.3", image); err != nil || got != want {
			t.Errorf("image %q: %q, %v", image, got, err)
		}
	}
}

func TestAMistakeInTheInjectorsConfigMapIsNamed(t *testing.T) {
	for _, c := range []struct{ values, config, want string }{
		{`{"global": {"proxy": {"excludeIPRanges": "10.0.0.0"}}}`, "", "values: global.proxy.excludeIPRanges: value \"10.0.0.0\""},
		{`{"global": {"imagePullPolicy": "Sometimes"}}`, "", `values: global.imagePullPolicy: "Sometimes": want Always`},
		{`{"global": {"proxy": {"image": "a/b c"}}}`, "", "values: global.proxy.image"},
		{`{`, "", "values: "},
		{`{}`, "policy: [", "config: "},
	} {
		_, err := ReadOptions(Options{}, []byte(c.values), []byte(c.config))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: %v, want %s", c.values, c.config, err, c.want)
		}
	}
}
