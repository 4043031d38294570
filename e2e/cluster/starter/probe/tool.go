package main

import (
	"encoding/json"
	"fmt"
	"net/http"
)

// tool answers one request as an MCP server of protocol 2026-07-28: each of its tools says with which credential it was called, in
// hexadecimal, as what repeats a credential is blotted out.
func tool(to http.ResponseWriter, body []byte, credential string) {
	var asked struct {
		ID     json.RawMessage `json:"id"`
		Method string          `json:"method"`
		Params struct {
			Name string `json:"name"`
		} `json:"params"`
	}
	if err := json.Unmarshal(body, &asked); err != nil {
		http.Error(to, err.Error(), http.StatusBadRequest)
		return
	}
	if asked.ID == nil {
		to.WriteHeader(http.StatusAccepted)
		return
	}
	answer := map[string]any{"jsonrpc": "2.0", "id": asked.ID}
	switch asked.Method {
	case "server/discover":
		answer["result"] = map[string]any{
			"resultType":        "complete",
			"supportedVersions": []string{"2026-07-28"},
			"capabilities":      map[string]any{"tools": map[string]any{}},
			"ttlMs":             0,
			"cacheScope":        "private",
		}
	case "tools/call":
		text := fmt.Sprintf("%s called with %x", asked.Params.Name, credential)
		answer["result"] = map[string]any{
			"resultType": "complete",
			"content":    []any{map[string]any{"type": "text", "text": text}},
		}
	default:
		answer["error"] = map[string]any{"code": -32601, "message": "no such method: " + asked.Method}
	}
	to.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(to).Encode(answer)
}
