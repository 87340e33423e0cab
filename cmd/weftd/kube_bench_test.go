package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// A weftd process in a cluster of 1000 services with 5 pods each: from its start until it is ready, and its memory then.
func BenchmarkInACluster(b *testing.B) {
	for _, services := range []int{0, 1000} {
		b.Run(fmt.Sprint(services, " services"), func(b *testing.B) {
			api := newCluster(b)
			api.InstallDefinitions()
			api.Fill(services, 5)
			startReplica(b, api, 30000) // compiles weftd, and has made the authority
			for range b.N {
				began := time.Now()
				r := startReplica(b, api, 20000)
				eventually(b, "ready", r.ready)
				b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms/ready")
				time.Sleep(2 * time.Second) // not a wait for anything: memory at rest is what is measured
				status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
				if err != nil {
					b.Fatal(err)
				}
				for line := range strings.Lines(string(status)) {
					var kib float64
					if _, err := fmt.Sscanf(line, "VmRSS: %f kB", &kib); err == nil {
						b.ReportMetric(kib/1024, "MiB-RSS")
					}
					if _, err := fmt.Sscanf(line, "RssAnon: %f kB", &kib); err == nil {
						b.ReportMetric(kib/1024, "MiB-anonymous")
					}
					if _, err := fmt.Sscanf(line, "VmHWM: %f kB", &kib); err == nil {
						b.ReportMetric(kib/1024, "MiB-RSS-peak")
					}
				}
				r.cmd.Process.Kill()
				<-r.done
			}
		})
	}
}
