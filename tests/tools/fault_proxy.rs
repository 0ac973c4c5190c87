//! The fault proxy of the tests as a program, for scripts.
//!
//! `fault-proxy --upstream HOST:PORT [--listen HOST:PORT] [--control HOST:PORT]` prints one line of JSON with both addresses
//! and runs until its standard input ends or it is killed. Control, by HTTP:
//!
//! | request | does |
//! |---|---|
//! | `POST /rules` | adds a rule or an array of rules (JSON of `RuleSpec`); answers their numbers |
//! | `GET /rules` | rules with their hits |
//! | `DELETE /rules` | removes all; what they hold is dropped |
//! | `POST /rules/N/release`, `/drop`, `/off` | lets held requests go on, closes them, ends the rule |
//! | `GET /rules/N/wait?hits=1&ms=10000` | answers when the rule has so many hits (200) or the time is over (504) |
//! | `GET /counts`, `POST /counts/reset` | figures; the second begins anew |
//! | `GET /log` | a line of text per request |
//! | `POST /dead`, `/alive`, `/silent`, `/refused` | state of the whole line |
//! | `POST /link?bytes_per_s=N&latency_ms=N` | speed and latency of the line; 0: no limit |
//! | `POST /upstream?addr=HOST:PORT` | later connections go there |

#[path = "../support/mod.rs"]
mod support;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use support::fault::RuleSpec;
use support::{FaultProxy, Line};

type Answer = Result<(u16, String), Box<dyn std::error::Error>>;

/// Longest body of a control request, bytes.
const CONTROL_BODY_BYTES_MAX: u64 = 1 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut options = HashMap::new();
    let mut arguments = std::env::args().skip(1);
    while let (Some(name), value) = (arguments.next(), arguments.next()) {
        let value = value.ok_or_else(|| format!("{name} needs a value; options: --upstream, --listen, --control"))?;
        if !["--upstream", "--listen", "--control"].contains(&name.as_str()) {
            return Err(format!("unknown option {name}; there are --upstream, --listen, --control").into());
        }
        options.insert(name, value);
    }
    let address = |name: &str| -> Result<SocketAddr, Box<dyn std::error::Error>> {
        Ok(options.get(name).map_or("127.0.0.1:0", String::as_str).parse()?)
    };
    if !options.contains_key("--upstream") {
        return Err("--upstream HOST:PORT is missing".into());
    }
    let proxy = Arc::new(FaultProxy::start_at(address("--listen")?, address("--upstream")?)?);
    let control = TcpListener::bind(address("--control")?)?;
    println!("{}", json!({"listen": proxy.addr().to_string(), "control": control.local_addr()?.to_string()}));
    std::thread::spawn(move || {
        for stream in control.incoming().flatten() {
            let proxy = proxy.clone();
            std::thread::spawn(move || {
                if let Err(e) = serve(&stream, &proxy) {
                    eprintln!("fault-proxy: control: {e}");
                }
            });
        }
    });
    // Ends with the script that started it.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

fn serve(stream: &TcpStream, proxy: &FaultProxy) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or("").to_owned(), words.next().unwrap_or("").to_owned());
    let mut len = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            len = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = String::new();
    reader.take(len.min(CONTROL_BODY_BYTES_MAX)).read_to_string(&mut body)?;
    let (status, text) = act(proxy, &method, &target, &body).unwrap_or_else(|e| (400, format!("{e}\n")));
    let mut stream = stream;
    write!(stream, "HTTP/1.1 {status} -\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{text}", text.len())
}

fn act(proxy: &FaultProxy, method: &str, target: &str, body: &str) -> Answer {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let parameter = |name: &str| {
        query.split('&').filter_map(|pair| pair.split_once('=')).find(|(n, _)| *n == name).map(|(_, value)| value)
    };
    let number = |name: &str| parameter(name).map(str::parse::<u64>).transpose();
    let done = Ok((200, "{}\n".to_owned()));
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    match (method, segments.as_slice()) {
        ("POST", ["rules"]) => {
            let specs: Vec<RuleSpec> = match serde_json::from_str(body)? {
                Value::Array(items) => items.into_iter().map(serde_json::from_value).collect::<Result<_, _>>()?,
                one => vec![serde_json::from_value(one)?],
            };
            let ids: Vec<u64> = specs.into_iter().map(|spec| proxy.add(spec).id()).collect();
            Ok((200, format!("{}\n", json!(ids))))
        }
        ("GET", ["rules"]) => {
            let rules: Vec<Value> = proxy
                .rules()
                .iter()
                .map(|rule| json!({"id": rule.id(), "hits": rule.hits(), "rule": rule.spec()}))
                .collect();
            Ok((200, format!("{}\n", json!(rules))))
        }
        ("DELETE", ["rules"]) => {
            proxy.clear_rules();
            done
        }
        (_, ["rules", id, verb]) => {
            let id: u64 = id.parse()?;
            let rule = proxy.rules().into_iter().find(|rule| rule.id() == id).ok_or("no such rule")?;
            match (method, *verb) {
                ("POST", "release") => rule.release(),
                ("POST", "drop") => rule.drop_held(),
                ("POST", "off") => rule.turn_off(),
                ("GET", "wait") => {
                    let timeout = Duration::from_millis(number("ms")?.unwrap_or(10_000));
                    if !rule.wait_hits(number("hits")?.unwrap_or(1), timeout) {
                        return Ok((504, format!("{}\n", json!({"hits": rule.hits()}))));
                    }
                }
                _ => return Err(format!("{method} {path}: no such command").into()),
            }
            Ok((200, format!("{}\n", json!({"hits": rule.hits()}))))
        }
        ("GET", ["counts"]) => {
            let counts = proxy.counts();
            let parts: Vec<Value> = counts
                .parts
                .iter()
                .map(|((key, part), count)| json!({"key": key, "part": part, "count": count}))
                .collect();
            let all = json!({"counts": counts, "parts": parts, "bytes_sent": counts.bytes_sent(), "requests": counts.requests_all()});
            Ok((200, format!("{all}\n")))
        }
        ("POST", ["counts", "reset"]) => {
            proxy.take_counts();
            done
        }
        ("GET", ["log"]) => Ok((200, proxy.counts().log_text())),
        ("POST", [state @ ("dead" | "alive" | "silent" | "refused")]) => {
            proxy.set_line(match *state {
                "dead" => Line::Dead,
                "alive" => Line::Alive,
                "silent" => Line::Silent,
                _ => Line::Refused,
            });
            done
        }
        ("POST", ["link"]) => {
            if let Some(rate) = number("bytes_per_s")? {
                proxy.set_bandwidth((rate > 0).then_some(rate));
            }
            if let Some(ms) = number("latency_ms")? {
                proxy.set_latency(Duration::from_millis(ms));
            }
            done
        }
        ("POST", ["upstream"]) => {
            proxy.set_upstream(parameter("addr").ok_or("addr=HOST:PORT is missing")?.parse()?);
            done
        }
        _ => Err(format!("{method} {path}: no such command").into()),
    }
}
