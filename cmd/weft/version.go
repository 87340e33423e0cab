package main

import (
	"encoding/json"
	"fmt"
	"runtime/debug"
	"slices"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/deploy/release"
)

// version is which release the program belongs to, and what it was built from, as Go recorded it in the binary.
type version struct {
	Version  string `json:"version"`            // "1.2.3", or "dev"
	Image    string `json:"image"`              // of the mesh, in this version
	Revision string `json:"revision,omitempty"` // commit, when the build knew it
	Go       string `json:"go"`
	IstioAPI string `json:"istioAPI"` // whose kinds and fields are understood
	EnvoyAPI string `json:"envoyAPI"` // what proxies are configured with
}

func buildVersion() version {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return version{Version: release.Version(), Image: release.Image()}
	}
	v := version{Version: release.Version(), Image: release.Image(), Go: info.GoVersion}
	if i := slices.IndexFunc(info.Settings, func(s debug.BuildSetting) bool { return s.Key == "vcs.revision" }); i >= 0 {
		v.Revision = info.Settings[i].Value
	}
	for _, d := range info.Deps {
		switch d.Path {
		case "istio.io/api":
			v.IstioAPI = d.Version
		case "github.com/envoyproxy/go-control-plane/envoy":
			v.EnvoyAPI = d.Version
		}
	}
	return v
}

func newVersion() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version, and which APIs it speaks",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, out := buildVersion(), cmd.OutOrStdout()
			switch output {
			case "":
				_, err := fmt.Fprintf(out, "weft %s (%s), Istio API %s, Envoy API %s\n", v.Version, v.Go, v.IstioAPI, v.EnvoyAPI)
				return err
			case "short":
				_, err := fmt.Fprintln(out, v.Version)
				return err
			case "json":
				e := json.NewEncoder(out)
				e.SetIndent("", "  ")
				return e.Encode(v)
			case "yaml":
				b, err := yaml.Marshal(v)
				if err == nil {
					_, err = out.Write(b)
				}
				return err
			}
			return fmt.Errorf("--output is %q, want short, json or yaml", output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "short, json or yaml")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"short", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp)) // fails only when the flag is unknown or registered twice
	return cmd
}
