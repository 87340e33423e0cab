package nodeagent

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestTheNodeIsNotReadyWhenItsPodsCouldNotBeRedirected: with CNI 1.1 the runtime asks every plugin for its STATUS, and kubelet makes no pods while one says no.
func TestTheNodeIsNotReadyWhenItsPodsCouldNotBeRedirected(t *testing.T) {
	c := open(t)
	if strings.HasPrefix(c.Containerd, "1.") {
		t.Skipf("containerd %s asks no plugin for its STATUS: CNI 1.1 came with containerd 2", c.Containerd)
	}
	ns := c.namespace()
	text := strings.Replace(c.list("status", 0), "1.0.0", "1.1.0", 1)
	c.only(map[string]string{"10-status.conflist": text})
	c.install(nil)
	c.chained("10-status.conflist")
	c.within(patience, func() string { return c.networkReady() })
	p := c.start(c.app(ns, "app"))
	c.sees(p, nothing)
	c.never(p)

	// Nobody is there to put this right: an entry that would never learn whether a pod is injected.
	c.stop()
	good := c.conf()["10-status.conflist"]
	bad := strings.Replace(good, `"capabilities":{"io.kubernetes.cri.pod-annotations":true}`, `"capabilities":{}`, 1)
	bad = strings.Replace(bad, `"agentSocket"`, `"formerly"`, 1)
	if bad == good {
		t.Fatalf("the entry looks otherwise than this test thinks: %s", good)
	}
	c.write("10-status.conflist", bad)
	var said string
	c.within(patience, func() string {
		if said = c.networkReady(); said == "" {
			return "the runtime says that the network is ready"
		}
		return ""
	})
	if !strings.Contains(said, "no way to learn whether a pod is injected") {
		t.Errorf("the runtime says %q", said)
	}
	c.write("10-status.conflist", good)
	c.within(patience, func() string { return c.networkReady() })
}

// networkReady is "" when the container runtime tells kubelet that pods can have a network, else its reason.
func (c *cluster) networkReady() string {
	conn, err := grpc.NewClient("unix://"+c.RuntimeSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	ctx, stop := context.WithTimeout(context.Background(), 5*time.Second)
	defer stop()
	r, err := cri.NewRuntimeServiceClient(conn).Status(ctx, &cri.StatusRequest{})
	if err != nil {
		return err.Error()
	}
	for _, condition := range r.Status.Conditions {
		if condition.Type == "NetworkReady" && !condition.Status {
			return fmt.Sprintf("%s: %s", condition.Reason, condition.Message)
		}
	}
	return ""
}
