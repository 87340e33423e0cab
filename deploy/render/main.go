// render prints what a chart becomes: go run ./deploy/render istiod [VALUES.yaml]
package main

import (
	"fmt"
	"os"

	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/deploy"
)

func main() {
	names := map[string]string{"base": "istio-base", "istiod": "istiod", "cni": "istio-cni", "gateway": "istio-ingressgateway"}
	var values map[string]any
	if len(os.Args) > 2 {
		b, err := os.ReadFile(os.Args[2])
		if err == nil {
			err = yaml.Unmarshal(b, &values)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	r, err := deploy.Render(os.Args[1], deploy.Release{Name: names[os.Args[1]], Namespace: "istio-system"}, values)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Stdout.Write(r.YAML())
	fmt.Fprintln(os.Stderr, r.Notes)
}
