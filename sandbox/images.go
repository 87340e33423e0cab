package sandbox

import (
	"os"
	"os/exec"
	"path/filepath"
)

const (
	weftdImage = "docker.io/weftmesh/weftd"
	envoyImage = "docker.io/envoyproxy/envoy"
)

// builtin says which program stands for which image. Several names may lead to
// one program: the first that exists in the directory of the weft executable is taken.
var builtin = []struct {
	image    string
	programs []string
}{
	{envoyImage, []string{"envoy"}},
	{"docker.io/istio/proxyv2", []string{"envoy"}},
	{weftdImage, []string{"weftd"}},
	{"docker.io/weftmesh/weft", []string{"weft"}},
	{"docker.io/weftmesh/testapp", []string{"testapp"}},
	{"docker.io/weftmesh/bookinfo-productpage", []string{"samples/productpage", "productpage"}},
	{"docker.io/weftmesh/bookinfo-details", []string{"samples/details", "details"}},
	{"docker.io/weftmesh/bookinfo-reviews", []string{"samples/reviews", "reviews"}},
	{"docker.io/weftmesh/bookinfo-ratings", []string{"samples/ratings", "ratings"}},
	{"docker.io/istio/examples-bookinfo-productpage*", []string{"samples/productpage", "productpage"}},
	{"docker.io/istio/examples-bookinfo-details*", []string{"samples/details", "details"}},
	{"docker.io/istio/examples-bookinfo-reviews*", []string{"samples/reviews", "reviews"}},
	{"docker.io/istio/examples-bookinfo-ratings*", []string{"samples/ratings", "ratings"}},
}

// Images is the map from image to program: the built-in ones whose program is
// beside the weft executable, Envoy also from $ENVOY or $PATH, and given, which wins.
func Images(given map[string]string) map[string]string {
	out := map[string]string{}
	here := ""
	if exe, err := os.Executable(); err == nil {
		here = filepath.Dir(exe)
	}
	for _, b := range builtin {
		for _, p := range b.programs {
			path := filepath.Join(here, p)
			if p == "envoy" {
				path = envoyProgram(here)
			}
			if executable(path) == nil {
				out[b.image] = path
				break
			}
		}
	}
	for image, path := range given {
		if abs, err := filepath.Abs(path); err == nil {
			path = abs
		}
		out[image] = path
	}
	return out
}

func envoyProgram(here string) string {
	if p := os.Getenv("ENVOY"); p != "" {
		return p
	}
	if p := filepath.Join(here, "envoy"); executable(p) == nil {
		return p
	}
	p, err := exec.LookPath("envoy")
	if err != nil {
		return ""
	}
	return p
}
