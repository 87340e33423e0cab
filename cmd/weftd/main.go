// weftd is the control plane: admission webhook, discovery service and certificate
// authority in one process.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/cmd/logging"
	"github.com/weft-mesh/weft/webhook"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "weftd: "+err.Error())
		os.Exit(1)
	}
}

// drainInCluster leaves a third of Kubernetes' default grace period for the rest.
const drainInCluster = 20 * time.Second

// options are the flags of weftd.
type options struct {
	config     []string
	kube       bool
	kubeconfig string

	caDir         string
	learnedDir    string
	trustDomain   string
	clusterDomain string
	svidTTL       time.Duration

	jwks          string
	jwksCA        string
	jwksToken     string
	tokenIssuer   string
	tokenAudience string

	xdsAddress        string
	plaintextAddress  string
	drain             time.Duration
	webhookAddress    string
	monitoringAddress string
	servingNames      []string

	injectionConfig  string
	proxyImage       string
	startGate        string
	revision         string
	rootNamespace    string
	discoveryAddress string

	logs logging.Flags
}

func newCommand() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "weftd --kube | --config PATH --ca-dir DIR --jwks FILE-OR-URL --token-issuer ISSUER",
		Short: "The control plane of weft: injects sidecars, configures them, and signs their certificates",
		Long: `weftd serves, until it gets SIGTERM or SIGINT:

  xDS over TLS        --xds-address            configuration and certificates for proxies that show a pod's token
  xDS in plaintext    --plaintext-xds-address  the same without certificates; on loopback no token is needed, for debugging
  admission webhook   --webhook-address        /inject
  monitoring          --monitoring-address     /metrics, /ready; /debug/ on loopback or with a token of the root namespace

In a cluster (--kube) it reads and follows Kubernetes and Istio objects, keeps its
certificate authority in the Secret istio-ca-secret of the root namespace, or uses the one
in the Secret cacerts, and checks tokens with the API server's keys. Any number of replicas serve;
one of them writes the mesh's root into ConfigMap istio-ca-root-cert of every namespace and into
the webhook configurations of its revision.

Without a cluster it reads objects from files, follows changes, and keeps its
certificate authority in --ca-dir. A CA of your own (ca-cert.pem, ca-key.pem,
root-cert.pem, cert-chain.pem, as in Istio's Secret cacerts) is used when it is
there, and replaced without a restart when the files or the Secret change.`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := o.logs.Logger(os.Stderr)
			if err != nil {
				return err
			}
			if o.kube && !cmd.Flags().Changed("drain") {
				o.drain = drainInCluster
			}
			return run(cmd.Context(), o, log)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringArrayVar(&o.config, "config", nil, "YAML or JSON `PATH`, file or directory, with the cluster's objects; watched; repeatable")
	f.BoolVar(&o.kube, "kube", false, "read the mesh from the API server of the cluster that this runs in, or of --kubeconfig")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "`FILE` that says how to reach the API server; needs --kube (default: the pod's service account)")
	f.StringVar(&o.caDir, "ca-dir", "", "`DIR` of the certificate authority; a self-signed one is made there when it is empty (with --kube the default is a Secret)")
	f.StringVar(&o.learnedDir, "learned-dir", "", "`DIR` that remembers what workloads have asked for (on-demand discovery) beyond restarts (with --kube the default is ConfigMaps weft-learned-*)")
	f.StringVar(&o.trustDomain, "trust-domain", "cluster.local", "authority part of SPIFFE identities")
	f.StringVar(&o.clusterDomain, "cluster-domain", "cluster.local", "DNS suffix of services")
	f.DurationVar(&o.svidTTL, "svid-ttl", 24*time.Hour, "life of workload certificates; they are renewed at half of it")

	f.StringVar(&o.jwks, "jwks", "", "`FILE-OR-URL` of the public keys that service account tokens are signed with")
	f.StringVar(&o.jwksCA, "jwks-ca-file", "", "`FILE` with the CA of the --jwks URL (default: the system's)")
	f.StringVar(&o.jwksToken, "jwks-token-file", "", "`FILE` with a token to send to the --jwks URL")
	f.StringVar(&o.tokenIssuer, "token-issuer", "", "issuer that tokens must have")
	f.StringVar(&o.tokenAudience, "token-audience", "istio-ca", "audience that tokens must have")

	f.StringVar(&o.xdsAddress, "xds-address", ":15012", "`ADDRESS` of xDS over TLS")
	f.StringVar(&o.plaintextAddress, "plaintext-xds-address", "127.0.0.1:15010", "`ADDRESS` of xDS without TLS; empty for none")
	f.StringVar(&o.webhookAddress, "webhook-address", ":15017", "`ADDRESS` of the admission webhook")
	f.DurationVar(&o.drain, "drain", 0, "after SIGTERM, how long proxies are given to move to other replicas; at most the pod's grace period (default 20s with --kube)")
	f.StringVar(&o.monitoringAddress, "monitoring-address", ":15014", "`ADDRESS` of metrics, readiness and debug pages")
	f.StringSliceVar(&o.servingNames, "serving-name", nil, "further DNS `NAME` or IP address for the serving certificates; repeatable")

	f.StringVar(&o.injectionConfig, "injection-config", "", "`DIR` with the keys values and config of ConfigMap istio-sidecar-injector; watched. Flags win over it")
	f.StringVar(&o.proxyImage, "proxy-image", "", "`IMAGE` of injected proxies (default: the stock Envoy that this release was tested with)")
	f.StringVar(&o.startGate, "start-gate", string(webhook.GateAuto), "what holds a pod's containers back until its proxy is ready: hook (costs what the proxy takes to start; the node agents answer it), probe (costs a second more), or auto: hook when every node is annotated weft.dev/start-gate: hook by its agent")
	f.StringVar(&o.revision, "revision", "default", "revision that this control plane injects for (istio.io/rev)")
	f.StringVar(&o.rootNamespace, "root-namespace", "istio-system", "namespace of mesh-wide configuration and of this control plane")
	f.StringVar(&o.discoveryAddress, "discovery-address", "", "`ADDRESS` that injected proxies connect to (default istiod.ROOT-NAMESPACE.svc:15012)")

	o.logs.Add(f)
	return cmd
}
