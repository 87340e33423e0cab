package main

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/weft-mesh/weft/deploy/install"
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

	Cluster []install.RemoteVersion `json:"cluster,omitempty"` // what runs in the cluster, if one was asked
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
	var cluster clusterFlags
	var output string
	var remote bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version, and which APIs it speaks; with a cluster also what runs there",
		Long: `version prints which release this program is. Where a kubeconfig leads to a cluster that answers within a second, the versions of the
control planes and of the proxies there follow. --remote insists on them, --remote=false asks nobody.`,
		Example: `  weft version
  weft version --remote -o json
  weft version -o short --remote=false`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, out := buildVersion(), cmd.OutOrStdout()
			if output == "short" {
				_, err := fmt.Fprintln(out, v.Version)
				return err
			}
			insists := cmd.Flags().Changed("remote")
			if remote || !insists && cluster.configured() {
				var err error
				v.Cluster, err = cluster.versions(cmd.Context(), insists)
				if err != nil && insists {
					return err
				}
			}
			if output != "" {
				return printData(out, output, v)
			}
			fmt.Fprintf(out, "weft %s (%s), Istio API %s, Envoy API %s\n", v.Version, v.Go, v.IstioAPI, v.EnvoyAPI)
			printRemote(out, v.Cluster)
			return nil
		},
	}
	cluster.add(cmd)
	cmd.Flags().BoolVar(&remote, "remote", false, "fail when the cluster cannot be asked (default: ask when one answers at once)")
	addOutput(cmd, &output, "", "", "short", "json", "yaml")
	return cmd
}

// configured says whether a kubeconfig names a cluster, without asking it.
func (c *clusterFlags) configured() bool {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = c.target.Kubeconfig
	config, err := rules.Load()
	return err == nil && len(config.Clusters) > 0
}

// versions asks the cluster.
func (c *clusterFlags) versions(ctx context.Context, patient bool) ([]install.RemoteVersion, error) {
	limit := time.Second
	if patient {
		limit = 30 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	to, err := c.connect()
	if err != nil {
		return nil, err
	}
	return to.RemoteVersions(ctx)
}

// printRemote prints what runs in the cluster, in istioctl's words.
func printRemote(out io.Writer, all []install.RemoteVersion) {
	var proxies []string
	for _, v := range all {
		if v.Component == "proxy" {
			noun := "proxies"
			if v.Pods == 1 {
				noun = "proxy"
			}
			proxies = append(proxies, fmt.Sprintf("%s (%d %s)", v.Version, v.Pods, noun))
			continue
		}
		fmt.Fprintf(out, "control plane version: %s (%s, revision %s)\n", v.Version, v.Component, v.Revision)
	}
	if len(proxies) > 0 {
		fmt.Fprintln(out, "data plane version: "+strings.Join(proxies, ", "))
	}
}
