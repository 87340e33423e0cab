package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os/exec"
	"strings"

	"github.com/weft-mesh/weft/e2e"
)

// checks run in this order; each leaves its rule in place for the next.
var checks = []struct {
	what  string
	check func(context.Context, *demo) (seen string, err error)
}{
	{"pods have their sidecar: 2/2", podsReady},
	{"the page through the ingress gateway", page},
	{"without rules, reviews come from three versions", threeVersions},
	{"all traffic to v1", allToV1},
	{"90/10 between v1 and v2", ninetyTen},
	{"a header (end-user: jason) chooses v2", headerToV2},
	{"a delay of 2 s injected into ratings", delay},
	{"an abort injected into details", abort},
	{"a sidecar's certificate carries the SPIFFE identity", certificate},
	{"STRICT refuses plaintext from outside the mesh", strict},
	{"the redirection rules of one pod, as the kernel has them", rules},
	{"weftd killed, traffic still flows", outage},
}

func podsReady(ctx context.Context, d *demo) (string, error) {
	return eventually(ctx, func() (string, error) {
		out, err := d.kubectl(ctx, "get", "pods", "--no-headers")
		if err != nil {
			return "", err
		}
		ready, total := 0, 0
		for line := range strings.Lines(out) {
			total++
			if f := strings.Fields(line); len(f) > 2 && f[1] == "2/2" && f[2] == "Running" {
				ready++
			}
		}
		if total != 6 || ready != total {
			return "", fmt.Errorf("%d of %d are 2/2 Running:\n%s", ready, total, out)
		}
		return fmt.Sprintf("%d of %d", ready, total), nil
	})
}

func page(ctx context.Context, d *demo) (string, error) {
	return eventually(ctx, func() (string, error) {
		rs, err := d.get(ctx, ingress+"/productpage")
		if err != nil {
			return "", err
		}
		if r := rs[0]; r.Status != 200 || !strings.Contains(r.Body, "Bookinfo Product Page") || !strings.Contains(r.Body, "William Shakespeare") || !strings.Contains(r.Body, "Reviews served by") {
			return "", fmt.Errorf("status %d %s: %.200s", r.Status, r.Error, r.Body)
		}
		return fmt.Sprintf("200, server: %s", rs[0].Header("server")), nil
	})
}

const reviews = ingress + "/api/v1/products/0/reviews"

func threeVersions(ctx context.Context, d *demo) (string, error) {
	rs, err := d.get(ctx, "-n", "60", reviews)
	if err != nil {
		return "", err
	}
	got := rs.Versions()
	if got["v1"] == 0 || got["v2"] == 0 || got["v3"] == 0 || len(got) != 3 {
		return "", fmt.Errorf("60 requests: %v", got)
	}
	return fmt.Sprintf("60 requests: %v", got), nil
}

func allToV1(ctx context.Context, d *demo) (string, error) {
	if err := d.apply(ctx, "destination-rule-reviews.yaml"); err != nil {
		return "", err
	}
	if err := d.apply(ctx, "virtual-service-reviews-v1.yaml"); err != nil {
		return "", err
	}
	return eventually(ctx, func() (string, error) { return only(ctx, d, "v1", "-n", "50", reviews) })
}

func only(ctx context.Context, d *demo, version string, args ...string) (string, error) {
	rs, err := d.get(ctx, args...)
	if err != nil {
		return "", err
	}
	if got := rs.Versions(); got[version] != len(rs) {
		return "", fmt.Errorf("%d requests: %v", len(rs), got)
	}
	return fmt.Sprintf("%d of %d requests", len(rs), len(rs)), nil
}

func ninetyTen(ctx context.Context, d *demo) (string, error) {
	if err := d.apply(ctx, "virtual-service-reviews-90-10.yaml"); err != nil {
		return "", err
	}
	return eventually(ctx, func() (string, error) {
		rs, err := d.get(ctx, "-n", "200", reviews)
		if err != nil {
			return "", err
		}
		got := rs.Versions()
		// Four standard deviations around 20 of 200.
		if got["v1"]+got["v2"] != 200 || got["v2"] < 4 || got["v2"] > 37 {
			return "", fmt.Errorf("200 requests: %v", got)
		}
		return fmt.Sprintf("200 requests: %v", got), nil
	})
}

func headerToV2(ctx context.Context, d *demo) (string, error) {
	if err := d.apply(ctx, "virtual-service-reviews-test-v2.yaml"); err != nil {
		return "", err
	}
	return eventually(ctx, func() (string, error) {
		// productpage turns the cookie of who signed in into the header.
		if _, err := only(ctx, d, "v2", "-n", "30", "-H", "Cookie: user=jason", reviews); err != nil {
			return "", fmt.Errorf("jason: %w", err)
		}
		if _, err := only(ctx, d, "v1", "-n", "30", reviews); err != nil {
			return "", fmt.Errorf("others: %w", err)
		}
		return "jason: 30 of 30 v2, others: 30 of 30 v1", nil
	})
}

func delay(ctx context.Context, d *demo) (string, error) {
	if err := d.apply(ctx, "virtual-service-ratings-test-delay.yaml"); err != nil {
		return "", err
	}
	return eventually(ctx, func() (string, error) {
		rs, err := d.get(ctx, "-H", "Cookie: user=jason", reviews)
		if err != nil {
			return "", err
		}
		if r := rs[0]; r.Status != 200 || r.Millis < 2000 || r.Millis > 4000 {
			return "", fmt.Errorf("status %d after %.0f ms, want 200 after 2000", r.Status, r.Millis)
		}
		return fmt.Sprintf("200 after %.0f ms", rs[0].Millis), nil
	})
}

func abort(ctx context.Context, d *demo) (string, error) {
	if err := d.apply(ctx, "virtual-service-details-test-abort.yaml"); err != nil {
		return "", err
	}
	return eventually(ctx, func() (string, error) {
		rs, err := d.get(ctx, "-n", "20", ingress+"/api/v1/products/0")
		if err != nil {
			return "", err
		}
		if got := rs.Statuses(); got["555"] != 20 {
			return "", fmt.Errorf("20 requests: %v", got)
		}
		return "20 of 20 answered 555", nil
	})
}

func certificate(ctx context.Context, d *demo) (string, error) {
	ip, err := d.kubectl(ctx, "get", "pods", "-l", "app=details", "-o", "jsonpath={.items[0].status.podIP}")
	if err != nil {
		return "", err
	}
	rs, err := d.get(ctx, "-alpn", "istio", "tls://"+ip+":9080")
	if err != nil {
		return "", err
	}
	const want = "URI:spiffe://cluster.local/ns/default/sa/bookinfo-details"
	if path, err := exec.LookPath("openssl"); err == nil {
		cmd := exec.CommandContext(ctx, path, "x509", "-noout", "-ext", "subjectAltName", "-enddate")
		cmd.Stdin = strings.NewReader(rs[0].Body)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			return "", fmt.Errorf("openssl: %v: %s %s", err, out, rs[0].Error)
		}
		return strings.Join(strings.Fields(string(out)), " "), nil
	}
	block, _ := pem.Decode([]byte(rs[0].Body))
	if block == nil {
		return "", fmt.Errorf("no certificate: %+v", rs[0])
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", err
	}
	if len(cert.URIs) != 1 || "URI:"+cert.URIs[0].String() != want {
		return "", fmt.Errorf("SAN %v", cert.URIs)
	}
	return want + " (no openssl here; read with Go)", nil
}

func strict(ctx context.Context, d *demo) (string, error) {
	if err := d.apply(ctx, "strict.yaml"); err != nil {
		return "", err
	}
	return eventually(ctx, func() (string, error) {
		rs, err := d.get(ctx, "http://reviews.default:9080/reviews/0")
		if err != nil {
			return "", err
		}
		if r := rs[0]; r.Status != 0 || r.Error == "" {
			return "", fmt.Errorf("plaintext got status %d", r.Status)
		}
		through, err := d.get(ctx, reviews)
		if err != nil {
			return "", err
		}
		if through[0].Status != 200 {
			return "", fmt.Errorf("through the gateway: status %d", through[0].Status)
		}
		reason := rs[0].Error
		if i := strings.LastIndex(reason, ": "); i >= 0 {
			reason = reason[i+2:]
		}
		return "direct: " + reason + "; through the gateway: 200", nil
	})
}

func outage(ctx context.Context, d *demo) (string, error) {
	type outcome struct {
		rs  e2e.Results
		err error
	}
	flowing := make(chan outcome, 1)
	go func() {
		rs, err := d.get(ctx, "-for", "8s", "-rate", "50", reviews)
		flowing <- outcome{rs, err}
	}()
	if err := killWeftd(ctx, d); err != nil {
		return "", err
	}
	got := <-flowing
	if got.err != nil {
		return "", got.err
	}
	if ok := got.rs.Statuses()["200"]; ok != len(got.rs) || ok == 0 {
		return "", fmt.Errorf("%d requests: %v", len(got.rs), got.rs.Statuses())
	}
	return fmt.Sprintf("%d of %d requests answered", len(got.rs), len(got.rs)), nil
}
