package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/identity/identitytest"
	"github.com/weft-mesh/weft/xds"
)

// both is one file in which the endpoints of bookinfo have gone and its configuration has changed: weftd reads both at the same moment.
var (
	down = strings.ReplaceAll(bookinfo, "conditions: {ready: true}", "conditions: {ready: false}")
	both = down + "---" + virtualService("7s")
)

// pushes counts what was published because of a kind of change.
func (c *controlPlane) pushes(kind string) float64 {
	c.t.Helper()
	return c.metric(`pilot_push_triggers{type="` + kind + `"}`)
}

func TestEndpointsDoNotWaitForConfiguration(t *testing.T) {
	t.Setenv("PILOT_DEBOUNCE_AFTER", "1h")
	t.Setenv("PILOT_DEBOUNCE_MAX", "1h")
	c := newControlPlane(t)
	c.put("bookinfo", down)
	c.start()
	c.put("bookinfo", bookinfo+"---"+virtualService("7s"))
	c.eventually("the endpoints are published", func() bool { return c.pushes("endpoint") > 0 })
	if n := c.pushes("config"); n != 0 {
		t.Errorf("configuration was published %v times; it has to wait an hour", n)
	}
}

// Who takes the routes to an app away and then the app must not have the second published first.
func TestEndpointsThatGoTakeConfigurationAlong(t *testing.T) {
	t.Setenv("PILOT_DEBOUNCE_AFTER", "1h")
	t.Setenv("PILOT_DEBOUNCE_MAX", "1h")
	c := newControlPlane(t)
	c.start()
	c.put("bookinfo", both)
	c.eventually("the endpoints are published", func() bool { return c.pushes("endpoint") > 0 })
	c.eventually("the configuration that changed with them is published", func() bool { return c.pushes("config") > 0 })
}

func TestConfigurationWaitsNoLongerThanTheMaximum(t *testing.T) {
	t.Setenv("PILOT_DEBOUNCE_AFTER", "1h")
	t.Setenv("PILOT_DEBOUNCE_MAX", "50ms")
	c := newControlPlane(t)
	c.start()
	c.put("bookinfo", both)
	c.eventually("the configuration is published", func() bool { return c.pushes("config") > 0 })
}

func TestEndpointsWaitWhereTheyAreTold(t *testing.T) {
	t.Setenv("PILOT_DEBOUNCE_AFTER", "2s")
	t.Setenv("PILOT_ENABLE_EDS_DEBOUNCE", "true")
	c := newControlPlane(t)
	c.start("--log-level", "debug")
	publications := func() int { return strings.Count(c.log.String(), "msg=published") }
	c.eventually("the first mesh is published", func() bool { return publications() > 0 })
	before := publications()
	c.put("bookinfo", both)
	c.eventually("the endpoints are published", func() bool { return c.pushes("endpoint") > 0 && publications() > before })
	if n := publications() - before; n != 1 || c.pushes("config") == 0 {
		t.Errorf("%d publications, %v of them with configuration; endpoints and configuration were to go together", n, c.pushes("config"))
	}
}

func TestABadDebounceIsSaidAtTheStart(t *testing.T) {
	for name, value := range map[string]string{"PILOT_DEBOUNCE_AFTER": "soon", "PILOT_DEBOUNCE_MAX": "-1s", "PILOT_ENABLE_EDS_DEBOUNCE": "perhaps"} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(name, value)
			dir := t.TempDir()
			cmd := newCommand()
			cmd.SetArgs([]string{"--config", dir, "--ca-dir", dir + "/ca", "--jwks", identitytest.NewIssuer(t, issuerName, "k1").JWKSFile(t), "--token-issuer", issuerName, "--xds-address", "127.0.0.1:0",
				"--plaintext-xds-address", "", "--webhook-address", "127.0.0.1:0", "--monitoring-address", "127.0.0.1:0"})
			if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("got %v, want it to name %s", err, name)
			}
		})
	}
}

func TestProfilesAreForLoopbackAndTheRootNamespace(t *testing.T) {
	h := monitoring{server: xds.NewServer(xds.Config{}), registry: prometheus.NewRegistry(), rootNamespace: "istio-system"}.handler()
	for _, page := range []string{"/debug/pprof/", "/debug/pprof/heap?debug=1", "/debug/pprof/goroutine?debug=1", "/debug/pprof/profile?seconds=1", "/debug/pprof/trace?seconds=1"} {
		for remote, want := range map[string]int{"127.0.0.1:4711": http.StatusOK, "[::1]:4711": http.StatusOK, "10.0.0.7:4711": http.StatusUnauthorized} {
			r := httptest.NewRequest(http.MethodGet, page, nil)
			r.RemoteAddr = remote
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != want {
				t.Errorf("%s from %s: %d, want %d: %s", page, remote, w.Code, want, w.Body)
			}
			if want == http.StatusOK && w.Body.Len() == 0 {
				t.Errorf("%s is empty", page)
			}
		}
	}
}
