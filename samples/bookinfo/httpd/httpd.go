// Package httpd is what the four Bookinfo programs share: a server that logs one line a
// request and stops gracefully, and a client that passes trace headers on, which is what a
// mesh asks of an application.
package httpd

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Propagated are the request headers an application hands on to the requests it makes
// on behalf of an incoming one: without them the spans of one page are many traces.
var Propagated = []string{
	"x-request-id", "traceparent", "tracestate", "b3",
	"x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags", "x-ot-span-context",
	"end-user", "user-agent", "authorization",
}

// Serve answers on :9080 (or :$PORT) until SIGTERM, then lets requests in flight finish.
// /health is answered here.
func Serve(name string, handler http.Handler) {
	port := os.Getenv("PORT")
	if port == "" {
		port = "9080"
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		WriteJSON(w, http.StatusOK, map[string]string{"status": name + " is healthy"})
	})
	mux.Handle("/", logged(handler))
	server := &http.Server{Addr: ":" + port, Handler: mux, ReadHeaderTimeout: 10 * time.Second}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	go func() {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = server.Shutdown(grace) // what is still running after the grace period ends with the process
	}()
	slog.Info("listening", "service", name, "address", server.Addr)
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		slog.Error("cannot serve", "service", name, "error", err)
		os.Exit(1)
	}
}

// GetJSON fetches url into out, with the propagated headers of the request being served.
// status is 0 when no answer came.
func GetJSON(r *http.Request, url string, out any) (status int, err error) {
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	for _, h := range Propagated {
		if v := r.Header.Get(h); v != "" {
			req.Header.Set(h, v)
		}
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return resp.StatusCode, err
	}
	if resp.StatusCode != http.StatusOK {
		return resp.StatusCode, fmt.Errorf("%s: %s", resp.Status, body)
	}
	return resp.StatusCode, json.Unmarshal(body, out)
}

var client = &http.Client{Timeout: 10 * time.Second}

// WriteJSON answers with a JSON document.
func WriteJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client has gone; there is nobody to tell
}

// Env returns an environment variable or its default.
func Env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		rec := &recorder{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(rec, r)
		slog.Info("request", "method", r.Method, "path", r.URL.Path, "status", rec.status,
			"duration", time.Since(start).Round(time.Microsecond), "request_id", r.Header.Get("x-request-id"))
	})
}

type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}
