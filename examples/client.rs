//! A client on the schema, with the standard library alone: rustc client.rs && ./client [HOST:PORT]

use std::env;
use std::io::{self, Read, Write};
use std::net::TcpStream;

/// One call; the answer's status and its JSON.
fn call(host: &str, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(host)?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, json) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    Ok((status, json.to_string()))
}

/// The value of a member that is a string; enough for what this program looks at.
fn member<'a>(json: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = json.split_once(&format!("\"{name}\":\""))?;
    rest.split('"').next()
}

fn main() -> io::Result<()> {
    let host = env::args().nth(1).unwrap_or_else(|| "localhost:8000".into());
    let calls = [
        ("PUT", "/vcpu/0/program", r#"[["out", "0x3f8", 65], ["hlt"]]"#),
        ("POST", "/vcpu/0/run", "{}"),
    ];
    for (method, path, body) in calls {
        let (status, json) = call(&host, method, path, body)?;
        if status >= 400 {
            eprintln!("{method} {path}: {}", member(&json, "detail").unwrap_or("refused"));
            std::process::exit(1);
        }
        if let (Some(reason), Some(data)) = (member(&json, "exit_reason"), member(&json, "data")) {
            println!("{reason} {data}");
        }
    }
    Ok(())
}
